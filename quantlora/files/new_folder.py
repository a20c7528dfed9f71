"""A folder that appears whole: written beside its place, flushed, then renamed.

Writers of one folder do not see each other's files; the first that is through has it.
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
    staging = target.with_name(f".{target.name}.partial-{secrets.token_hex(4)}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        with locked(target.parent) as alone:  # nobody finds it before it is locked
            if alone:
                _remove_left(target)
            staging.mkdir()
            held.callback(shutil.rmtree, staging, ignore_errors=True)
            held.enter_context(locked(staging))
        yield staging
        _show(staging, target)


def _show(staging: Path, target: Path) -> None:
    for path in (*staging.iterdir(), staging):
        flush(path)
    with suppress(OSError):
        target.rmdir()  # one that has files stays, and the next line fails
    os.rename(staging, target)
    flush(target.parent)


def _remove_left(target: Path) -> None:
    for left in target.parent.glob(f".{glob.escape(target.name)}.partial*"):
        with locked(left, wait=False) as free:
            if free:
                shutil.rmtree(left, ignore_errors=True)
