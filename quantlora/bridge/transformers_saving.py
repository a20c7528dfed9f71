"""`save_pretrained` and `load_state_dict` of a wrapped Transformers model: what Trainer calls.

Trainer without PEFT knows of no adapter. It resumes, and loads its best checkpoint, only from a
``model.safetensors`` that it gives to ``load_state_dict``; so its folders get one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.adapters.switch import active_adapters
from quantlora.checkpoint.save import save_adapter, update_card, write_adapter, write_trained
from quantlora.errors import AdapterError, warn

#: The folders Trainer saves its checkpoints in.
_CHECKPOINT = re.compile(r"checkpoint-\d+")
#: What an upload may be told.
_HUB = ("commit_description", "commit_message", "create_pr", "private", "revision", "tags", "token")


def save_pretrained(
    model: nn.Module,
    save_directory: str | os.PathLike[str],
    is_main_process: bool = True,
    state_dict: Mapping[str, Tensor] | None = None,
    push_to_hub: bool = False,
    safe_serialization: bool = True,
    save_embedding_layers: bool | str = "auto",
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
        save_embedding_layers: as in `save_adapter`.
        kwargs: for the hub; Transformers' options for saving a whole model have no effect.
    """
    if not safe_serialization:
        warn("adapters are saved as safetensors only.")
    if is_main_process:
        _save(model, Path(os.path.realpath(save_directory)), state_dict, save_embedding_layers)
    if push_to_hub:
        options = {name: kwargs[name] for name in _HUB if name in kwargs}
        repo_id = kwargs.get("repo_id") or Path(save_directory).name
        model.push_to_hub(repo_id, **options)  # type: ignore[operator]


def _save(
    model: nn.Module, folder: Path, values: Mapping[str, Tensor] | None, embeddings: bool | str
) -> None:
    active = some_active(model)
    if _CHECKPOINT.fullmatch(folder.name):
        write_trained(model, folder, values)
    if len(active) == 1:
        write_adapter(
            AdaptedModel.of(model),
            folder,
            active[0],
            state_dict=values,
            save_embedding_layers=embeddings,
        )
        return
    for name in active:
        save_adapter(model, folder, name, state_dict=values, save_embedding_layers=embeddings)


def load_state_dict(
    model: nn.Module, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
) -> Any:
    """As the class's own; without ``strict``, frozen parameters need not be there.

    So Trainer resumes from the trained parameters alone, and says what is really missing.
    """
    result = type(model).load_state_dict(model, state_dict, strict=strict, assign=assign)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    result.missing_keys[:] = [key for key in result.missing_keys if key in trained]
    return result


def create_or_update_model_card(model: nn.Module, output_dir: str | os.PathLike[str]) -> None:
    """Add what an adapter's card needs to the one that Trainer writes when training is over."""
    update_card(model, Path(output_dir), some_active(model)[0])


def some_active(model: nn.Module) -> list[str]:
    """Names of the active adapters; an `AdapterError` where there are none."""
    active = active_adapters(model)
    if not active:
        raise AdapterError("no adapter is active: call model.set_adapter(name) first.")
    return active
