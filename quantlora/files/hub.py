"""The Hugging Face hub: fetched into its cache, whose folders link to files beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class HubError(Exception):
    """The hub did not give what was asked for; the text is its reason, in one line."""


def download(
    name: str,
    patterns: Sequence[str],
    revision: str | None = None,
    token: str | bool | None = None,
) -> Path:
    """The folder of a snapshot of the repository ``name``, with the files that match ``patterns``.

    Raises:
        HubError: it is not there, or the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    wanted = list(patterns)
    try:
        found = snapshot_download(name, revision=revision, token=token, allow_patterns=wanted)
    except Exception as error:
        line = next(iter(str(error).strip().splitlines()), "")
        raise HubError(f"{type(error).__name__}: {line}") from error
    return Path(found)


def with_blobs(folder: Path) -> list[Path]:
    """``folder``, and where the hub's cache keeps the files of a snapshot that it is within:
    ``models--x--y/snapshots/revision`` has links to ``models--x--y/blobs``.
    """
    snapshots = [
        above for above in folder.parents if above.name == "snapshots" and "--" in above.parent.name
    ]
    return [folder, *(above.parent / "blobs" for above in snapshots)]
