"""A small disk, to be filled or locked: a tmpfs where we may mount one, else the next best."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIZE = 24 * 2**20
_FILLER = "filler"


class Disk:
    """A folder of its own size.

    Args:
        real: whether it is a file system of its own; else the size of single files is limited, and
            a folder's permissions stand for a disk that is mounted read-only.
    """

    def __init__(self, folder: Path, real: bool) -> None:
        self.folder, self.real = folder, real
        self._limit: int | None = None

    def leave(self, free: int) -> None:
        """Fill it up to ``free`` bytes."""
        if not self.real:
            self._limit = free
            return
        (self.folder / _FILLER).unlink(missing_ok=True)
        found = os.statvfs(self.folder)
        with (self.folder / _FILLER).open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, found.f_bavail * found.f_frsize - free))

    def make_room(self) -> None:
        self._limit = None
        (self.folder / _FILLER).unlink(missing_ok=True)

    def enter(self) -> None:
        """To be called in the process that is to feel the limit."""
        if self._limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self._limit, resource.RLIM_INFINITY))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Within the block nothing can be written."""
        self._set_writable(False)
        try:
            yield
        finally:
            self._set_writable(True)

    def _set_writable(self, yes: bool) -> None:
        if self.real:
            way = "remount,rw" if yes else "remount,ro"
            subprocess.run(["mount", "-o", way, str(self.folder)], check=True)
            return
        for folder in (self.folder, *(p for p in self.folder.rglob("*") if p.is_dir())):
            folder.chmod(0o755 if yes else 0o555)


@contextmanager
def small_disk(folder: Path) -> Iterator[Disk]:
    """A disk of `SIZE` bytes at ``folder``, gone after the block."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "quantlora-trial", str(folder)]
    try:
        real = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        real = False
    try:
        yield Disk(folder, real)
    finally:
        if real:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
