"""Where converted models are kept, and how a folder gets there whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import platformdirs
from filelock import FileLock

from quantlora.errors import FinetuneError

#: Names another folder for what quantlora caches.
CACHE = "QUANTLORA_CACHE"

_UNFINISHED = ".unfinished-"


def cache_folder() -> Path:
    """``$QUANTLORA_CACHE``, else the platform's own place (``$XDG_CACHE_HOME`` on Linux)."""
    chosen = os.environ.get(CACHE)
    return Path(chosen) if chosen else platformdirs.user_cache_path("quantlora", appauthor=False)


def cached_folder(name: str, fill: Callable[[Path], None], need: int) -> Path:
    """The folder ``name`` in the cache, made by ``fill`` the first time.

    ``fill`` works in a folder beside it that is renamed when it is done: what can be seen under
    its own name is complete, also after a kill. Of several processes one fills, the others wait.

    Args:
        need: bytes that ``fill`` uses at most, checked first.

    Raises:
        FinetuneError: there is not so much space, or the cache cannot be written to.
    """
    root = cache_folder()
    target = root / name
    if target.is_dir():
        return target
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{name}.lock"):
            if not target.is_dir():
                _fill(target, fill, need)
    except OSError as error:
        raise FinetuneError(
            f"the cache {root} cannot be written to: {error}. Name another folder with {CACHE}."
        ) from error
    return target


def _fill(target: Path, fill: Callable[[Path], None], need: int) -> None:
    for left in target.parent.glob(f"{target.name}{_UNFINISHED}*"):
        shutil.rmtree(left, ignore_errors=True)  # of a process that was killed: we hold the lock
    require_space(target.parent, need, f"name another folder with {CACHE}")
    place = Path(tempfile.mkdtemp(prefix=f"{target.name}{_UNFINISHED}", dir=target.parent))
    try:
        fill(place)
        os.replace(place, target)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def require_space(folder: Path, need: int, remedy: str) -> None:
    """Raise `FinetuneError` where the disk of ``folder`` has less than ``need`` bytes left."""
    free = shutil.disk_usage(folder).free
    if free < need:
        raise FinetuneError(
            f"{folder}: {need / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free. "
            f"Make room, or {remedy}."
        )
