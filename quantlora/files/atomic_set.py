"""Writing a set of files into a folder so that a kill leaves the old set or the new one, whole.

The files are written to a staging folder inside ``folder``, flushed to disk, and then shown:

- The folder has no complete set yet: one by one; the last file completes the set.
- Only one file differs: one rename.
- Several differ: the whole folder is exchanged for a copy of it with the new files (`swap`).

Readers need no lock. Writers of one folder wait for each other, also across processes.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from quantlora.files.atomic_file import Writer, write_flushed
from quantlora.files.fsync import flush
from quantlora.files.lock import locked
from quantlora.files.swap_folder import recover, swap

#: Begins the names of staging folders. One that is there while no save runs is from a kill.
STAGING = ".quantlora-"


def write_set(
    folder: Path,
    files: Mapping[str, Writer],
    obsolete: Sequence[str] = (),
    within: Path | None = None,
) -> None:
    """Replace ``files`` in ``folder`` as one.

    Args:
        folder: a real path; made where it does not exist.
        files: by name. The last one makes a set complete: no reader takes the folder for one
            without it.
        obsolete: files that another format left and that the new set replaces too.
        within: writers wait for each other in this folder, ``folder`` itself by default.

    Raises:
        OSError: the folder cannot be written to, or the disk is full; what was there is as it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(within or folder) as alone:
        if alone:
            recover(folder, STAGING)
        _write(folder, files, obsolete)


def _write(folder: Path, files: Mapping[str, Writer], obsolete: Sequence[str]) -> None:
    staging = Path(tempfile.mkdtemp(prefix=STAGING, dir=folder))
    try:
        for name, write in files.items():
            write_flushed(staging / name, write)
        _show(staging, folder, list(files), obsolete)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _show(staging: Path, folder: Path, names: list[str], obsolete: Sequence[str]) -> None:
    gone = [name for name in obsolete if (folder / name).exists()]
    changed = [name for name in names if not _same(staging / name, folder / name)]
    if len(changed) > 1 and (gone or (folder / names[-1]).exists()):
        swap(staging, folder, changed, gone)
        return
    for name in changed:
        os.replace(staging / name, folder / name)
    for name in gone:
        (folder / name).unlink()
    flush(folder)


def _same(new: Path, old: Path) -> bool:
    """Same bytes, in a file of our own: a link is replaced, never written through."""
    return old.is_file() and not old.is_symlink() and filecmp.cmp(new, old, shallow=False)
