"""Two folders change places in one step of the file system: ``renameat2``, Linux only."""

from __future__ import annotations

import ctypes
import os
import sys
from errno import ENOSYS
from pathlib import Path

_HERE = -100  # AT_FDCWD: relative to the working directory
_EXCHANGE = 2  # RENAME_EXCHANGE, since Linux 3.15


def exchange(first: Path, other: Path) -> None:
    """Let ``one`` and ``other`` change places; nobody ever sees either missing.

    Raises:
        OSError: the system or the file system cannot (macOS, Windows, NFS).
    """
    if sys.platform != "linux":
        raise OSError(ENOSYS, "this system cannot exchange two folders", str(first))
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        raise OSError(ENOSYS, "this C library has no renameat2", str(first))
    if renameat2(_HERE, os.fsencode(first), _HERE, os.fsencode(other), _EXCHANGE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(first))
