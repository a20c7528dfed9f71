"""A place to write in, beside what is to appear: nobody else's, and gone afterwards.

A folder appears whole so: its writers do not see each other's files, and the first that is through
has it. What a kill has left is removed by the next writer, where the file system has locks to tell
it from one at work.
"""

from __future__ import annotations

import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from quantlora.files.fsync import flush
from quantlora.files.lock import locked

#: Stands in the names of staging folders, between the target's and a number.
MARK = ".partial"


@contextmanager
def staging_beside(target: Path) -> Iterator[Path]:
    """An empty folder ``.<target>.partial-<number>`` for the time of the block."""
    staging = target.with_name(f".{target.name}{MARK}-{secrets.token_hex(4)}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        with locked(target.parent) as alone:  # nobody finds it before it is locked
            if alone:
                _remove_left(target)
            staging.mkdir()
            held.callback(shutil.rmtree, staging, ignore_errors=True)
            held.enter_context(locked(staging))
        yield staging


def _remove_left(target: Path) -> None:
    for left in target.parent.glob(f".{glob.escape(target.name)}{MARK}*"):
        with locked(left, wait=False) as free:
            if free:
                shutil.rmtree(left, ignore_errors=True)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to write in that becomes ``target`` when the block is through.

    It is called ``.<target>.partial-<number>``. What a kill has left under such a name is removed
    by the next writer, where the file system has locks to tell it from one at work.

    Args:
        target: absolute; must not exist, or be empty.

    Raises:
        OSError: it cannot be written, or ``target`` has been filled by another meanwhile.
    """
    with staging_beside(target) as staging:
        yield staging
        for path in (*staging.rglob("*"), staging):
            flush(path)
        with suppress(OSError):
            target.rmdir()  # one that has files stays, and the next line fails
        os.rename(staging, target)
        flush(target.parent)
