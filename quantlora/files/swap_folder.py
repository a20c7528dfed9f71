"""Replacing several files of a folder at once, by exchanging the folder for a copy of it.

    .<folder>.quantlora-…   the copy: what else is in the folder by hard links, the new files
    exchange(copy, folder)
    the copy, now the old folder, is removed

Others may write into the folder meanwhile (other ranks, a log writer): what they made or replaced
between copy and exchange is carried over.
"""

from __future__ import annotations

import ctypes
import glob
import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from errno import ENOSYS
from pathlib import Path

from quantlora.files.fsync import flush
from quantlora.files.lock import locked

_HERE = -100  # AT_FDCWD: relative to the working directory
_EXCHANGE = 2  # RENAME_EXCHANGE, since Linux 3.15


def swap(staging: Path, folder: Path, names: Sequence[str], gone: Sequence[str]) -> None:
    """Show ``names`` of ``staging`` in ``folder`` and take ``gone`` away, in one step.

    Where the file system cannot exchange folders, in steps between which the folder holds no
    adapter at all: never a mixture.
    """
    # A name of its own: where the file system has no locks, another save may be at it too.
    beside = folder.with_name(f"{_beside(folder)}-{secrets.token_hex(4)}")
    for name in gone:
        (staging / name).touch()  # all that is ours has its name in the staging folder
    with ExitStack() as held:
        try:
            _fill(beside, staging, folder, names, gone)
            # Else the next writer of the new folder would take the old one for a kill's leavings.
            held.enter_context(locked(beside))
            exchange(beside, folder)
        except OSError:
            shutil.rmtree(beside, ignore_errors=True)
            _step_by_step(staging, folder, names, gone)
        else:
            flush(folder.parent)
            _retire(beside, folder, staging.name)


def _fill(
    beside: Path, staging: Path, folder: Path, names: Sequence[str], gone: Sequence[str]
) -> None:
    if _inside(Path.cwd(), folder):
        raise OSError("the working directory would be the removed folder")
    _copy(folder, beside, leave={staging.name, *names, *gone})
    for name in names:
        os.link(staging / name, beside / name)
    flush(beside)


def recover(folder: Path, staging: str) -> None:
    """Remove what a killed save left; call it with the lock held.

    Args:
        staging: how the names of staging folders begin.
    """
    for beside in folder.parent.glob(f"{glob.escape(_beside(folder))}*"):
        for path in beside.glob(f"{staging}*"):  # killed when the folders were exchanged already
            _retire(beside, folder, path.name)
        shutil.rmtree(beside, ignore_errors=True)
    for path in folder.glob(f"{staging}*"):
        shutil.rmtree(path, ignore_errors=True)


def _step_by_step(staging: Path, folder: Path, names: Sequence[str], gone: Sequence[str]) -> None:
    for name in (names[-1], *gone):
        (folder / name).unlink(missing_ok=True)
    for name in names:
        os.replace(staging / name, folder / name)
    flush(folder)


def _beside(folder: Path) -> str:
    """How the names of copies of ``folder`` begin."""
    return f".{folder.name}.quantlora"


def _inside(path: Path, folder: Path) -> bool:
    return folder in (path, *path.parents)


def _copy(folder: Path, copy: Path, leave: set[str]) -> None:
    """A copy of ``folder`` by hard links, without the entries ``leave`` at its top."""

    def ignore(path: str, names: list[str]) -> set[str]:
        return leave if Path(path) == folder else set()

    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy, symlinks=True, ignore=ignore, copy_function=os.link)
    here = folder.stat()
    if (copy.stat().st_uid, copy.stat().st_gid) != (here.st_uid, here.st_gid):
        with suppress(PermissionError):
            os.chown(copy, here.st_uid, here.st_gid)


def _retire(old: Path, folder: Path, staging: str) -> None:
    """Carry over to ``folder`` what was made or replaced in ``old``, then remove it.

    What cannot be carried over stays in ``old``, for the next save to try again.
    """
    with suppress(OSError):
        ours = {staging, *os.listdir(old / staging)}
        for path in _files(old, ours):
            target = folder / path.relative_to(old)
            if not os.path.lexists(target) or _newer(path, target):
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, target)
        shutil.rmtree(old, ignore_errors=True)


def _files(top: Path, ours: set[str]) -> Iterator[Path]:
    for path, folders, files in os.walk(top):
        if path == os.fspath(top):
            folders[:] = [name for name in folders if name not in ours]
            files = [name for name in files if name not in ours]
        yield from (Path(path, name) for name in files)


def _newer(path: Path, target: Path) -> bool:
    new, other = path.lstat(), target.lstat()
    return new.st_ino != other.st_ino and new.st_mtime_ns > other.st_mtime_ns


def exchange(first: Path, other: Path) -> None:
    """Let two folders change places in one step, by ``renameat2``; nobody sees either missing.

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
