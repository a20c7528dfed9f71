"""One writer at a time in a folder, across processes, without leaving a lock file behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows: there the last of two savers wins
    fcntl = None  # type: ignore[assignment]


@contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the lock on ``folder``; yields False where the file system has none.

    Args:
        wait: for others to be through; else it yields False where another holds the lock.

    The lock is on the folder itself and goes with the process, however that ends.
    """
    handle = _lock(folder, wait)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            os.close(handle)


def _lock(folder: Path, wait: bool) -> int | None:
    while fcntl is not None:
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            here = os.stat(folder)
        except OSError:
            os.close(handle)
            return None
        if os.path.samestat(os.fstat(handle), here):
            return handle
        os.close(handle)  # the folder was exchanged while we waited
    return None
