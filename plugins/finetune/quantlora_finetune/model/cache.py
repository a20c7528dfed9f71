"""Where converted models are kept, each made once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import platformdirs
from filelock import FileLock

from quantlora import new_folder
from quantlora.errors import FinetuneError

#: Names another folder for what quantlora caches.
CACHE = "QUANTLORA_CACHE"


def cache_folder() -> Path:
    """``$QUANTLORA_CACHE``, else the platform's own place (``$XDG_CACHE_HOME`` on Linux)."""
    chosen = os.environ.get(CACHE)
    return Path(chosen) if chosen else platformdirs.user_cache_path("quantlora", appauthor=False)


def cached_folder(name: str, fill: Callable[[Path], None], need: int) -> Path:
    """The folder ``name`` in the cache, made by ``fill`` the first time.

    What can be seen under that name is complete, also after a kill. Of several processes one
    fills, the others wait.

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
                with new_folder(target) as folder:  # what a kill left there is removed by now
                    require_space(root, need, f"name another folder with {CACHE}")
                    fill(folder)
    except OSError as error:
        raise FinetuneError(
            f"the cache {root} cannot be written to: {error}. Name another folder with {CACHE}."
        ) from error
    return target


def require_space(folder: Path, need: int, remedy: str) -> None:
    """Raise `FinetuneError` where the disk of ``folder`` has less than ``need`` bytes left."""
    free = shutil.disk_usage(folder).free
    if free < need:
        raise FinetuneError(
            f"{folder}: {need / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free. "
            f"Make room, or {remedy}."
        )
