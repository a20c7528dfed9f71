"""An adapter as PEFT's callers give it, by a config of PEFT's or a folder, onto a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

import quantlora
from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.adapters.adapter_dtype import match_base_dtype
from quantlora.checkpoint.load import put_on
from quantlora.checkpoint.read import read_adapter
from quantlora.config.lora_config import LoraConfig


def own_config(config: Any) -> LoraConfig:
    """PEFT's config as quantlora's: the same fields; what is unset there is the default here."""
    if isinstance(config, LoraConfig):
        return config
    given = {name: value for name, value in vars(config).items() if value not in (None, {}, False)}
    for name in ("auto_mapping", "peft_version", "runtime_config", "megatron_core", "peft_type"):
        given.pop(name, None)
    if not config.init_lora_weights:
        given["init_lora_weights"] = False
    if getattr(config, "task_type", None) is not None:
        given["task_type"] = str(getattr(config.task_type, "value", config.task_type))
    given.setdefault("target_modules", None)
    return LoraConfig.from_fields(given)


def wrap(model: nn.Module, config: Any, adapter: str, autocast: bool = True) -> None:
    """`quantlora.wrap` with a config of PEFT's."""
    own = own_config(config)
    quantlora.wrap(model, own, adapter_name=adapter, autocast_adapter_dtype=autocast)


def load(
    model: nn.Module,
    folder: Any,
    adapter: str,
    is_trainable: bool = False,
    autocast: bool = True,
    config: Any = None,
) -> Any:
    """`quantlora.load_adapter`; a ``config`` of PEFT's counts in place of the folder's."""
    place = Path(folder)
    place = place / adapter if (place / adapter).is_dir() else place
    if config is None:
        fields = {"is_trainable": is_trainable, "autocast_adapter_dtype": autocast}
        quantlora.load_adapter(model, folder, adapter, **fields)
        return replace(read_adapter(place).config, inference_mode=not is_trainable)
    config.inference_mode = not is_trainable
    put_on(
        AdaptedModel(model), own_config(config), read_adapter(place).tensors, adapter, str(folder)
    )
    if not autocast:
        match_base_dtype(model, adapter)
    return config
