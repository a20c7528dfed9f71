"""A page's project in a folder, with the metadata that pip would make of it."""

from __future__ import annotations

from pathlib import Path


def install(folder: Path, files: dict[str, str], name: str, entry_points: dict[str, str]) -> Path:
    """Write ``files`` and a ``dist-info`` for them into ``folder``, which goes on a path."""
    for file, text in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    points = "\n".join(f"{key} = {value}" for key, value in entry_points.items())
    (info / "entry_points.txt").write_text(f"[quantlora]\n{points}\n")
    return folder
