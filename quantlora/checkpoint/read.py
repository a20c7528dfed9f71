"""Reading an adapter's files as one set, also while somebody saves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from quantlora.checkpoint.config_file import read_config
from quantlora.checkpoint.place import CONFIG, SIDE, WEIGHTS
from quantlora.checkpoint.side_file import read_note
from quantlora.checkpoint.weights_file import read_weights
from quantlora.config.lora_config import LoraConfig
from quantlora.errors import AdapterFileError

_ATTEMPTS = 10


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter in memory: config, tensors by their keys in the file, and quantlora's note."""

    config: LoraConfig
    tensors: dict[str, Tensor]
    note: dict[str, Any]


def read_adapter(folder: Path) -> SavedAdapter:
    """The adapter directly in ``folder``.

    Read again where the files were replaced meanwhile: an old config with new tensors would be
    an adapter that nobody trained.
    """
    for _ in range(_ATTEMPTS):
        before = _identity(folder)
        try:
            note = read_note(folder)
            config = read_config(folder, base_is_noted=bool(note.get("base_change")))
            found = SavedAdapter(config, read_weights(folder), note)
        except AdapterFileError:
            if _identity(folder) == before:
                raise
        else:
            if _identity(folder) == before:
                return found
    raise AdapterFileError(f"{folder}: its files are replaced faster than they can be read.")


def _identity(folder: Path) -> list[tuple[int, ...]]:
    return [_stat(folder)[:1], *(_stat(folder / name) for name in (CONFIG, SIDE, WEIGHTS))]


def _stat(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size
