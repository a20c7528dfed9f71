"""Transformers' adapter methods, for a model that `wrap` has wrapped.

Names and arguments are those of ``transformers.integrations.PeftAdapterMixin`` and
``PreTrainedModel.save_pretrained``; arguments that only steer how PEFT loads are accepted and
have no effect.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from quantlora import adapters
from quantlora.checkpoint.config_file import config_from
from quantlora.checkpoint.keys import PREFIX
from quantlora.checkpoint.load import load_adapter, put_on
from quantlora.checkpoint.place import DEFAULT
from quantlora.checkpoint.save import adapter_tensors, save_adapter, write_adapter, write_trained
from quantlora.config import LoraConfig
from quantlora.errors import AdapterError, AdapterWarning
from quantlora.state import adapter_state
from quantlora.wrapping import wrap

#: The folders Trainer saves its checkpoints in.
_CHECKPOINT = re.compile(r"checkpoint-\d+")
#: What an upload may be told.
_HUB = ("commit_description", "commit_message", "create_pr", "private", "revision", "tags", "token")


def _save_pretrained(
    model: nn.Module,
    save_directory: str | os.PathLike[str],
    is_main_process: bool = True,
    state_dict: Mapping[str, Tensor] | None = None,
    push_to_hub: bool = False,
    safe_serialization: bool = True,
    **kwargs: Any,
) -> None:
    """Save the active adapter, and only it, in PEFT's format.

    One active adapter goes directly into the folder, whatever its name; of several, each not
    called ``default`` goes to a sub-folder of its name.

    Args:
        save_directory: the folder; in Trainer's ``checkpoint-<step>`` folders the trained
            parameters are saved under their names in the model too, for Trainer to resume from.
        is_main_process: where False, nothing is written.
        state_dict: take the values from here, by their names in ``model.state_dict()``.
        push_to_hub: also upload; ``repo_id``, ``token`` and the like are passed on.
        safe_serialization: there is no other: False has no effect.
        kwargs: for the hub; Transformers' options for saving a whole model have no effect.
    """
    if not safe_serialization:
        warnings.warn("adapters are saved as safetensors only.", AdapterWarning, stacklevel=3)
    if is_main_process:
        _save(model, Path(os.path.realpath(save_directory)), state_dict)
    if push_to_hub:
        options = {name: kwargs[name] for name in _HUB if name in kwargs}
        repo_id = kwargs.get("repo_id") or Path(save_directory).name
        model.push_to_hub(repo_id, **options)  # type: ignore[operator]


def _save(model: nn.Module, folder: Path, state_dict: Mapping[str, Tensor] | None) -> None:
    active = _active(model)
    if _CHECKPOINT.fullmatch(folder.name):
        write_trained(model, folder, state_dict)
    if len(active) == 1:
        write_adapter(model, folder, active[0], state_dict)
        return
    for name in active:
        save_adapter(model, folder, name, state_dict=state_dict)


def _load_state_dict(
    model: nn.Module, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
) -> Any:
    """As the class's own; without ``strict``, frozen parameters need not be there.

    So Trainer resumes from the trained parameters alone, and says what is really missing.
    """
    result = type(model).load_state_dict(model, state_dict, strict=strict, assign=assign)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    result.missing_keys[:] = [key for key in result.missing_keys if key in trained]
    return result


def _load_adapter(
    model: nn.Module,
    peft_model_id: str | os.PathLike[str] | None = None,
    adapter_name: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    peft_config: Any = None,
    adapter_state_dict: Mapping[str, Tensor] | None = None,
    is_trainable: bool = False,
    **kwargs: Any,
) -> None:
    """Load an adapter from a folder or the hub, or from a config and tensors in memory."""
    name = adapter_name or DEFAULT
    if peft_model_id is not None:
        load_adapter(
            model, peft_model_id, name, is_trainable=is_trainable, revision=revision, token=token
        )
    elif peft_config is None or adapter_state_dict is None:
        raise AdapterError("give a folder or hub id, or peft_config and adapter_state_dict.")
    else:
        config = replace(_own_config(peft_config), inference_mode=not is_trainable)
        put_on(model, config, adapter_state_dict, name, "adapter_state_dict")


def _add_adapter(model: nn.Module, adapter_config: Any, adapter_name: str | None = None) -> None:
    """Add a fresh adapter and make it the active one; a config of PEFT's will do."""
    wrap(model, _own_config(adapter_config), adapter_name=adapter_name or DEFAULT)


def _own_config(config: Any) -> LoraConfig:
    if isinstance(config, LoraConfig):
        return config
    fields = config if isinstance(config, Mapping) else config.to_dict()
    plain = {key: sorted(v) if isinstance(v, set) else v for key, v in fields.items()}
    return config_from(plain, "the adapter's config")


def _delete_adapter(model: nn.Module, adapter_names: str | Sequence[str]) -> None:
    """Delete adapters; with the last one the model is a plain model again."""
    names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
    for name in names:
        adapters.delete_adapter(model, name)
    if not adapter_state(model).configs:
        adapters.unload(model)


def _get_adapter_state_dict(
    model: nn.Module,
    adapter_name: str | None = None,
    state_dict: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The adapter's tensors by their keys in the file, without the prefix."""
    tensors = adapter_tensors(model, adapter_name or _active(model)[0], state_dict)
    return {key.removeprefix(PREFIX): tensor for key, tensor in tensors.items()}


def _active(model: nn.Module) -> list[str]:
    active = adapters.active_adapters(model)
    if not active:
        raise AdapterError("no adapter is active: call model.set_adapter(name) first.")
    return active


def _active_adapter(model: nn.Module) -> str:
    """The first active adapter."""
    return _active(model)[0]


#: By the names Transformers has for them.
METHODS: dict[str, Callable[..., Any]] = {
    "save_pretrained": _save_pretrained,
    "load_state_dict": _load_state_dict,
    "load_adapter": _load_adapter,
    "add_adapter": _add_adapter,
    "delete_adapter": _delete_adapter,
    "set_adapter": adapters.set_adapter,
    "active_adapters": adapters.active_adapters,
    "active_adapter": _active_adapter,
    "enable_adapters": adapters.enable_adapters,
    "disable_adapters": adapters.disable_adapters,
    "get_adapter_state_dict": _get_adapter_state_dict,
}
