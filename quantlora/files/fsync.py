"""Having things on the disk, so that they are there after a power failure too."""

from __future__ import annotations

import errno
import os
from pathlib import Path

#: What systems answer that cannot flush this kind of file.
_CANNOT = (errno.EINVAL, errno.EBADF, errno.EACCES)


def flush(path: Path) -> None:
    """Have the disk hold ``path``, a file or a folder, before anything that depends on it."""
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
