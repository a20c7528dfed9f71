"""Whether the files of a folder still hold what they held: sizes, times, and digests in doubt."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_BLOCK = 2**20

#: By file name: bytes, time of the last change, SHA-256 of the content.
FileNotes = Mapping[str, Mapping[str, Any]]


def note_files(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What `changed_file` compares with; reads every byte once.

    Raises:
        OSError: a file is not there, or cannot be read.
    """
    return {name: {**_outside(folder / name), "sha256": _digest(folder / name)} for name in names}


def changed_file(folder: Path, noted: FileNotes) -> str | None:
    """The first file that is gone or holds something else; None where all are as they were.

    A file of the same size and time is taken for the same; one with another time is read.
    """
    for name, note in noted.items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != note["size"]:
            return name
        if file.stat().st_mtime_ns != note["mtime_ns"] and _digest(file) != note["sha256"]:
            return name
    return None


def _outside(file: Path) -> dict[str, Any]:
    found = file.stat()
    return {"size": found.st_size, "mtime_ns": found.st_mtime_ns}


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
