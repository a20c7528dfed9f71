"""Writing a set of files into a folder so that a kill leaves the old set or the new one."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path


def write_set(
    folder: Path, files: Mapping[str, Callable[[Path], object]], obsolete: tuple[str, ...] = ()
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".quantlora-", dir=folder))
    try:
        for name, write in files.items():
            write(staging / name)
        for name in files:
            os.replace(staging / name, folder / name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
