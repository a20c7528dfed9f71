"""Reading an adapter's files as one set, also while somebody saves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.checkpoint.base_note import match_base
from quantlora.checkpoint.config_file import read_config
from quantlora.checkpoint.current_names import current_names
from quantlora.checkpoint.location import CONFIG, SIDE, WEIGHTS, AdapterLocation
from quantlora.checkpoint.old_experts import without_old_layout
from quantlora.checkpoint.saved_adapter import SavedAdapter
from quantlora.checkpoint.side_file import read_note
from quantlora.checkpoint.single_experts import stacked_experts
from quantlora.checkpoint.weights_file import read_weights
from quantlora.config.lora_config import LoraConfig
from quantlora.errors import AdapterFileError

_ATTEMPTS = 10


def read_adapter(folder: Path) -> SavedAdapter:
    """The adapter directly in ``folder``.

    Read again where the files were replaced meanwhile: an old config with new tensors would be
    an adapter that nobody trained.
    """
    for _ in range(_ATTEMPTS):
        before = _identity(folder)
        try:
            note = read_note(folder)
            config, peft = read_config(folder, base_is_noted=bool(note.get("base_change")))
            found = SavedAdapter(config, read_weights(folder), note, peft)
        except AdapterFileError:
            if _identity(folder) == before:
                raise
        else:
            if _identity(folder) == before:
                return found
    raise AdapterFileError(f"{folder}: its files are replaced faster than they can be read.")


@dataclass(frozen=True)
class MatchedAdapter:
    """An adapter's files, read for one model.

    Args:
        source: the folder, for messages.
        file: what the files say.
        config, tensors: the same for the model's base, by the names that its modules have.
    """

    source: str
    file: SavedAdapter
    config: LoraConfig
    tensors: Mapping[str, Tensor]


def read_for(adapted: AdaptedModel, location: AdapterLocation) -> MatchedAdapter:
    """The adapter at ``location`` for the model; an `AdapterFileError` where it is for another."""
    folder = location.find()
    source, file = str(folder), read_adapter(folder)
    saved = match_base(file, adapted.model, source)
    named = current_names(source, adapted, saved.config, saved.tensors, location.key_mapping)
    config, tensors = stacked_experts(source, adapted, *named)
    tensors = without_old_layout(source, adapted, config, tensors, file)
    return MatchedAdapter(source, file, config, tensors)


def _identity(folder: Path) -> list[tuple[int, ...]]:
    return [_stat(folder)[:1], *(_stat(folder / name) for name in (CONFIG, SIDE, WEIGHTS))]


def _stat(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size
