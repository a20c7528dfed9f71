"""Packed checkpoints: a folder that `quantlora.load` loads at once, bit for bit.

It is a Transformers folder: safetensors by the names of the model's modules, and a config.json
whose ``quantization_config`` says for each packed layer and stack which format it is in. What is
packed is in plain tensors, mostly of bytes.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantlora.adapters.adapter_modules import embedding_ends
from quantlora.adapters.state import has_adapters
from quantlora.errors import AdapterError, BackendError, ConfigError
from quantlora.files.shards import ShardWriter
from quantlora.files.staging import new_folder
from quantlora.formats.finite import not_finite
from quantlora.loading.packed_modules import PackedModule, float_tensors, packed_modules
from quantlora.transformers_models import is_transformers_model

#: The ``quant_method`` of such a checkpoint.
METHOD = "quantlora"
VERSION = 1


@torch.no_grad()
def save_packed(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    max_shard_size: int = 2 * 10**9,
) -> Path:
    """Write a packed model so that `load` gives it back, every byte the same.

    For models that Transformers has no format for, packed experts above all. The folder appears
    when everything is written.

    Args:
        model: a Transformers model without adapters, some of its layers packed.
        folder: must not exist, or be empty.
        tokenizer: anything with ``save_pretrained``, saved beside the model.
        max_shard_size: bytes of a file.

    Returns:
        The folder.

    Raises:
        AdapterError: the model has adapters.
        BackendError: nothing is packed, in a format that cannot be written so, or from weights
            that were NaN or infinite.
        ConfigError: it is no Transformers model, or the folder is not empty.
    """
    target = _free(Path(os.path.abspath(folder)))
    _check_model(model)
    modules = list(packed_modules(model))
    if not modules:
        raise BackendError(
            "save_packed: no layer of the model is packed; save it by model.save_pretrained."
        )
    _check_finite(modules)
    with new_folder(target) as staging:
        writer = ShardWriter(staging, max_shard_size)
        writer.write(_tensors(model, modules))
        written = {name for shard in writer.names for name in shard}
        write_config(model, staging, {module.path: module.note() for module in modules}, written)
        if tokenizer is not None:
            tokenizer.save_pretrained(staging)
    return target


def write_config(
    model: Any, folder: Path, notes: Mapping[str, Mapping[str, Any]], written: set[str]
) -> None:
    """config.json with what is packed, and generation_config.json where the model has one."""
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    formats = sorted({note["format"] for note in notes.values()})
    config.quantization_config = {
        "quant_method": METHOD, "version": VERSION, "formats": formats, "modules": dict(notes),
    }  # fmt: skip
    ends = {id(end) for end in embedding_ends(model)}
    paths = [path for path, module in model.named_modules() if id(module) in ends]
    if len(paths) > 1 and all(any(n.startswith(f"{p}.") for n in written) for p in paths):
        for part in (config, config.get_text_config()):
            part.tie_word_embeddings = False  # two tensors are in the files
    config.save_pretrained(folder)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(folder)


def _tensors(model: nn.Module, modules: list[PackedModule]) -> Iterator[tuple[str, Tensor]]:
    yield from float_tensors(model, {module.path for module in modules})
    for module in modules:
        for name, tensor in module.state.tensors.items():
            yield f"{module.path}.{name}", tensor.detach()


def _check_finite(modules: list[PackedModule]) -> None:
    for module in modules:
        if bad := not_finite(module.state.tensors):
            raise BackendError(
                f"{module.path}: its {bad[0]} holds NaN or infinite values, which spoil the layer: "
                f"load or pack the model anew."
            )


def _check_model(model: nn.Module) -> None:
    if not is_transformers_model(model):
        raise ConfigError(
            f"save_packed is for Transformers models, whose config makes them again, and this is a "
            f"{type(model).__name__}: save its state_dict."
        )
    if has_adapters(model):
        raise AdapterError(
            "save_packed writes models without adapters: quantlora.save_adapter for these, then "
            "quantlora.unload, or quantlora.merge_and_unload to keep them in the weights."
        )


def _free(target: Path) -> Path:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} exists and is not an empty folder: choose another one.")
    return target
