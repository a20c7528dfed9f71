"""Hot swap: other values for an adapter that stays where it is, so nothing is compiled again.

A compiled model has the shapes of A and B and the scale burnt in. So the slot keeps both: a
smaller rank is padded with zeros, and the new adapter's scale goes into its B,

    s · B' · A' = s₁ · B₁ · A₁      with A' = [A₁; 0], B' = [(s₁ / s) · B₁, 0].

What is saved from the slot later is that, and computes the same.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.checkpoint.base_note import remember
from quantlora.checkpoint.base_tensors import base_values
from quantlora.checkpoint.location import AdapterLocation
from quantlora.checkpoint.match_tensors import ByPath, by_path
from quantlora.checkpoint.read import read_for
from quantlora.checkpoint.side_file import report_differences
from quantlora.checkpoint.slot_tensors import file_scaling, slot_tensors, widened
from quantlora.config.lora_config import LoraConfig
from quantlora.config.patterns import as_pattern
from quantlora.config.picked_paths import TargetNames
from quantlora.errors import AdapterError, AdapterFileError
from quantlora.layers.layer import LoraLayer
from quantlora.layers.parameters import LoraParameters
from quantlora.names import plain_path


@torch.no_grad()
def prepare_hot_swap(model: nn.Module, r: int, adapter_name: str = "default") -> None:
    """Make room for adapters up to rank ``r`` in the slot ``adapter_name``; before compiling.

    What the adapter computes stays the same; its A and B become new parameters. A layer that
    cannot have rank ``r`` gets the largest it can have.

    Raises:
        AdapterError: there is no such adapter, or it is merged.
    """
    adapted = AdaptedModel.of(model)
    config = adapted.state.known(adapter_name)
    _check_factors_only(config, "the slot")
    slots = _slots(adapted, adapter_name)
    for layer in slots.values():
        _pad(layer, adapter_name, config, r)
    r, ranks = as_pattern({path: layer.r[adapter_name] for path, layer in slots.items()})
    alphas = {path: layer.lora_alpha[adapter_name] for path, layer in slots.items()}
    alpha, other_alphas = as_pattern(alphas)
    adapted.state.configs[adapter_name] = replace(
        config, r=r, lora_alpha=alpha, rank_pattern=ranks, alpha_pattern=other_alphas
    )


@torch.no_grad()
def hot_swap(
    model: nn.Module,
    folder: str | os.PathLike[str],
    adapter_name: str = "default",
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    key_mapping: Mapping[str, str] | None = None,
) -> None:
    """Put the values of the adapter in ``folder`` in place of those of ``adapter_name``.

    Everything is checked before the first value is changed. Layers of the slot that the new
    adapter does not have get no update.

    Args:
        folder: written by quantlora or PEFT, or an id on the hub.
        revision, token: for the hub.
        key_mapping: as in `load_adapter`.

    Raises:
        AdapterFileError: the files are missing or damaged, or of another base model.
        AdapterError: the adapter does not fit the slot: a larger rank (see `prepare_hot_swap`),
            other layers, another variant; or the slot is merged.
    """
    adapted = AdaptedModel.of(model)
    location = AdapterLocation(folder, adapter_name, revision, token, key_mapping)
    found = read_for(adapted, location)
    source, config = found.source, found.config
    slots = _slots(adapted, adapter_name)
    given, others = by_path(found.tensors, ())
    base_values(source, others, adapted)  # embeddings of its own are refused
    _check(adapted.state.known(adapter_name), config, slots, given)
    _check_whole(source, config, slots, given)
    new = {
        path: slot_tensors(source, path, layer, adapter_name, config, given.get(path))
        for path, layer in slots.items()
    }
    for path, layer in slots.items():
        for name, parameter in layer.adapter_tensors(adapter_name).items():
            parameter.copy_(new[path][name])
    scales = {
        path: file_scaling(path, layer, adapter_name, config) for path, layer in slots.items()
    }
    remember(found.file, adapted, adapter_name, scales)
    report_differences(found.file.note, adapted, adapter_name, source)


def _slots(adapted: AdaptedModel, adapter: str) -> dict[str, LoraLayer]:
    adapted.state.known(adapter)
    layers = adapted.lora_layers.items()
    slots = {plain_path(path): layer for path, layer in layers if adapter in layer.adapters}
    for path, layer in slots.items():
        if isinstance(layer, LoraParameters):
            raise AdapterError(
                f"{path} has adapted parameters, and a hot swap is of LoRA layers only: load it as "
                f"an adapter of its own."
            )
        if adapter in layer.merged_adapters:
            raise AdapterError(f"{path}: adapter {adapter!r} is merged; unmerge it first.")
    return slots


def _pad(layer: LoraLayer, name: str, config: LoraConfig, r: int) -> None:
    old = layer.adapter_tensors(name)
    A = old[layer.factor_names[0]]
    room = min(r, layer.out_features, layer.in_features)
    rank = max(layer.r[name], room - room % layer.rank_multiple)
    layer.add_factors(name, config, rank, A.dtype)
    for key, parameter in layer.adapter_tensors(name).items():
        if parameter is not old[key]:
            parameter.copy_(widened(layer, key, old[key], parameter))
            parameter.requires_grad_(old[key].requires_grad)
    layer.r[name] = rank
    layer.lora_alpha[name] = layer.scaling[name] * (math.sqrt(rank) if config.use_rslora else rank)


def _check(
    slot: LoraConfig, new: LoraConfig, slots: Mapping[str, LoraLayer], given: ByPath
) -> None:
    _check_factors_only(new, "the adapter")
    if slot.variant != new.variant:
        raise AdapterError(f"the slot is of variant {slot.variant!r}, not {new.variant!r}.")
    strange = [path for path in given if path not in slots]
    missing = [path for path in slots if path not in given] if slot.variant != "lora" else []
    if strange or missing:
        raise AdapterError(
            f"the layers of the adapter are not those of the slot, {(strange + missing)[0]} first: "
            f"load it as an adapter of its own."
        )


def _check_factors_only(config: LoraConfig, which: str) -> None:
    for name in (
        "modules_to_save", "target_parameters", "bias", "trainable_token_indices",
        "ensure_weight_tying",
    ):  # fmt: skip
        if getattr(config, name) not in (None, [], "none", False):
            raise AdapterError(
                f"{which} has {name}, and a hot swap is of LoRA layers only: load it as an adapter "
                f"of its own."
            )


def _check_whole(
    source: str, config: LoraConfig, slots: Mapping[str, LoraLayer], given: ByPath
) -> None:
    """The file has tensors for every layer that its own config picks."""
    names = TargetNames(config)
    wanted = () if names.all_linear else (path for path in slots if names.pick(path))
    if absent := [path for path in wanted if path not in given]:
        raise AdapterFileError(
            f"{source} does not fit this model: it lacks those of {len(absent)} targeted layers, "
            f"{absent[0]} first. Is it for another base model?"
        )
