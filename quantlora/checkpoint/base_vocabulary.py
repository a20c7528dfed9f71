"""How many tokens the checkpoint knows that a model was loaded from; nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

_CONFIG = "config.json"
#: On a model that was loaded from a file with its config in it: the tokens of that config.
_LOADED = "quantlora_vocabulary"


def note_vocabulary(model: nn.Module) -> None:
    """Remember the tokens that ``model`` was loaded with, for no config.json says them later."""
    vars(model)[_LOADED] = vocabulary(getattr(model, "config", None))


def vocabulary(config: Any) -> int | None:
    """The tokens of a Transformers config: those of its text model where it has several."""
    try:
        text = config.get_text_config()
    except (AttributeError, ValueError):  # no config of Transformers', or one of several texts
        text = config
    size = getattr(text, "vocab_size", None)
    return size if isinstance(size, int) else None


def base_vocabulary(model: nn.Module, names: Iterable[str]) -> int | None:
    """That of the first of the checkpoints ``names`` whose config is on this machine.

    Args:
        names: folders, or ids on the hub whose config is in its cache.
    """
    if _LOADED in vars(model):
        loaded: int | None = vars(model)[_LOADED]
        return loaded
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        return None
    for name in names:
        file = _file(name, getattr(config, "_commit_hash", None))
        if file is not None:
            return vocabulary(type(config).from_dict(json.loads(file.read_text("utf-8"))))
    return None


def why_unknown(name: str) -> str:
    """Why nobody can tell the vocabulary of the checkpoint ``name``."""
    if Path(name).exists():
        return f"the base's checkpoint, {name}, has no {_CONFIG}"
    return f"the config of the base's checkpoint, {name}, is not on this machine"


def _file(name: str, revision: str | None) -> Path | None:
    if Path(name).is_dir():
        file = Path(name) / _CONFIG
        return file if file.is_file() else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for asked in dict.fromkeys((revision, None)):
        try:
            found = try_to_load_from_cache(name, _CONFIG, revision=asked)
        except HFValidationError:  # a folder that is gone
            return None
        if isinstance(found, str):
            return Path(found)
    return None
