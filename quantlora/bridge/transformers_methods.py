"""Transformers' adapter methods, for a model that `wrap` has wrapped.

Names and arguments are those of ``transformers.integrations.PeftAdapterMixin`` and
``PreTrainedModel.save_pretrained``; arguments that only steer how PEFT loads are accepted and
have no effect.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from quantlora.adapters import switch as adapters
from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.adapters.adapter_dtype import match_base_dtype
from quantlora.adapters.disabling import disable_adapters, enable_adapters
from quantlora.adapters.state import adapter_state
from quantlora.bridge.adapter_method import HOTSWAP_FLAG, detach
from quantlora.bridge.embeddings import resize_token_embeddings, tie_weights
from quantlora.bridge.generation import generate
from quantlora.bridge.peft_methods import PEFT_METHODS
from quantlora.bridge.transformers_saving import (
    create_or_update_model_card,
    load_state_dict,
    save_pretrained,
    some_active,
)
from quantlora.bridge.uploading import push_to_hub
from quantlora.checkpoint.adapter_tensors import adapter_tensors
from quantlora.checkpoint.config_file import config_from
from quantlora.checkpoint.current_names import current_names
from quantlora.checkpoint.hot_swap import hot_swap, prepare_hot_swap
from quantlora.checkpoint.keys import PREFIX
from quantlora.checkpoint.load import add_loaded_adapter, put_on
from quantlora.checkpoint.location import DEFAULT, AdapterLocation
from quantlora.checkpoint.weights_file import check_values
from quantlora.config.lora_config import LoraConfig
from quantlora.config.peft_config import peft_fields
from quantlora.errors import AdapterError
from quantlora.wrapping.add_adapter import add_adapter


def _load_adapter(
    model: nn.Module,
    peft_model_id: str | os.PathLike[str] | None = None,
    adapter_name: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    peft_config: Any = None,
    adapter_state_dict: Mapping[str, Tensor] | None = None,
    is_trainable: bool = False,
    hotswap: bool | str = "auto",
    autocast_adapter_dtype: bool = True,
    key_mapping: Mapping[str, str] | None = None,
    **kwargs: Any,
) -> None:
    """Load an adapter from a folder or the hub, or from a config and tensors in memory.

    With ``hotswap`` (also by ``enable_peft_hotswap`` and a name that is there) the values of the
    adapter of that name are replaced.
    """
    name = adapter_name or DEFAULT
    if hotswap == "auto":
        hotswap = HOTSWAP_FLAG in vars(model) and name in adapter_state(model).configs
    if hotswap and peft_model_id is not None:
        hot_swap(
            model, peft_model_id, name, revision=revision, token=token, key_mapping=key_mapping
        )
    elif peft_model_id is not None:
        location = AdapterLocation(peft_model_id, name, revision, token, key_mapping)
        add_loaded_adapter(model, location, is_trainable=is_trainable)
    elif peft_config is None or adapter_state_dict is None:
        raise AdapterError("give a folder or hub id, or peft_config and adapter_state_dict.")
    else:
        config = replace(_own_config(peft_config), inference_mode=not is_trainable)
        source = "adapter_state_dict"
        check_values(source, adapter_state_dict)
        adapted = AdaptedModel(model)
        names = current_names(source, adapted, config, adapter_state_dict, key_mapping)
        put_on(adapted, *names, name, source)
    if not (autocast_adapter_dtype or hotswap):
        match_base_dtype(model, name)


def _enable_peft_hotswap(model: nn.Module, target_rank: int = 128, **kwargs: Any) -> None:
    """Give every adapter room for rank ``target_rank``, and let `load_adapter` swap by name."""
    for name in adapter_state(model).configs:
        prepare_hot_swap(model, target_rank, name)
    vars(model)[HOTSWAP_FLAG] = True


def _add_adapter(model: nn.Module, adapter_config: Any, adapter_name: Any = None) -> None:
    """Add a fresh adapter and make it the active one; a config of PEFT's will do.

    In either order: Transformers has the config first, PEFT the name.
    """
    if isinstance(adapter_config, str):
        adapter_config, adapter_name = adapter_name, adapter_config
    add_adapter(model, adapter_config, adapter_name=adapter_name or DEFAULT)


def _own_config(config: Any) -> LoraConfig:
    """That of tensors which are given with it."""
    if isinstance(config, LoraConfig):
        return config
    return config_from(peft_fields(config), "the adapter's config")


def _delete_adapter(model: nn.Module, adapter_names: str | Sequence[str]) -> None:
    """Delete adapters; with the last one the model is a plain model again."""
    names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
    active = adapters.active_adapters(model)
    for name in sorted(names, key=active.__contains__):  # so that none becomes active in between
        adapters.delete_adapter(model, name)
    if not adapter_state(model).configs:
        adapters.remove_adapters(model)
        detach(model)


def _get_adapter_state_dict(
    model: nn.Module,
    adapter_name: str | None = None,
    state_dict: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The adapter's tensors by their keys in the file, without the prefix."""
    name = adapter_name or some_active(model)[0]
    tensors = adapter_tensors(AdaptedModel.of(model), name, state_dict)
    return {key.removeprefix(PREFIX): tensor for key, tensor in tensors.items()}


def _active_adapter(model: nn.Module) -> str:
    """The first active adapter."""
    return some_active(model)[0]


#: By the names Transformers has for them.
METHODS: dict[str, Callable[..., Any]] = {
    **PEFT_METHODS,
    "save_pretrained": save_pretrained,
    "load_state_dict": load_state_dict,
    "create_or_update_model_card": create_or_update_model_card,
    "load_adapter": _load_adapter,
    "add_adapter": _add_adapter,
    "delete_adapter": _delete_adapter,
    "set_adapter": adapters.set_adapter,
    "active_adapters": adapters.active_adapters,
    "active_adapter": _active_adapter,
    "enable_adapters": enable_adapters,
    "disable_adapters": disable_adapters,
    "get_adapter_state_dict": _get_adapter_state_dict,
    "enable_peft_hotswap": _enable_peft_hotswap,
    "push_to_hub": push_to_hub,
    "generate": generate,
    "resize_token_embeddings": resize_token_embeddings,
    "tie_weights": tie_weights,
}

#: Those that only a model of Transformers has a use for.
OF_TRANSFORMERS = (
    "load_state_dict",
    "create_or_update_model_card",
    "generate",
    "resize_token_embeddings",
    "tie_weights",
)
