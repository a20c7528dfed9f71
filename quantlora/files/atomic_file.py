"""A file that appears whole: written beside its place, flushed, then renamed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from quantlora.files.fsync import flush
from quantlora.files.staging import staging_beside

#: Writes a file at the path it is given.
Writer = Callable[[Path], object]


def write_file(file: Path, write: Writer, *, replace: bool = True) -> None:
    """Write ``file`` so that a kill leaves the old one, or none, or the new one, whole.

    Args:
        file: its folder is made where it does not exist.
        write: writes the content at the path it is given.
        replace: a file that is there; else it stays. Of several processes that write at the same
            time one succeeds, where the file system has hard links.

    Raises:
        FileExistsError: the file is there, and ``replace`` is False.
        OSError: it cannot be written.
    """
    with staging_beside(file) as staging:
        new = staging / file.name
        write_flushed(new, write)
        (os.replace if replace else _claim)(new, file)
        flush(file.parent)


def write_flushed(file: Path, write: Writer) -> None:
    """Let ``write`` make the new ``file``; the disk holds it afterwards."""
    file.touch()
    mode = file.stat().st_mode
    write(file)
    file.chmod(mode)  # the user's umask again: safetensors makes files that only the owner reads
    flush(file)


def _claim(new: Path, file: Path) -> None:
    """Give ``new`` the name ``file`` if nobody has it yet."""
    try:
        os.link(new, file)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if file.exists():
            raise FileExistsError(str(file)) from None
        os.replace(new, file)
