"""A folder that appears whole: written beside its place, flushed, then renamed.

Writers of one folder do not see each other's files; the first that is through has it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from quantlora.files.fsync import flush
from quantlora.files.staging import staging_beside


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
