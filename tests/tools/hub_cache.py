"""A cache of the hub as a download leaves it: links to blobs in a snapshot."""

from __future__ import annotations

from pathlib import Path


def put_in_cache(folder: Path, name: str, cache: Path) -> None:
    """The files of ``folder`` as the one revision, ``main``, of the repository ``name``."""
    repo, revision = cache / f"models--{name.replace('/', '--')}", "0" * 40
    snapshot, blobs = repo / "snapshots" / revision, repo / "blobs"
    for new in (snapshot, blobs, repo / "refs"):
        new.mkdir(parents=True)
    (repo / "refs" / "main").write_text(revision)
    for number, file in enumerate(folder.iterdir()):
        (blobs / str(number)).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
