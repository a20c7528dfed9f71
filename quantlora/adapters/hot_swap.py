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
from torch import Tensor, nn

from quantlora.adapters.holders import lora_layers
from quantlora.adapters.state import adapter_state, known_adapter
from quantlora.checkpoint.fitting import ByPath, by_path
from quantlora.checkpoint.keys import plain_path
from quantlora.checkpoint.place import find_folder
from quantlora.checkpoint.read import read_adapter
from quantlora.config.lora_config import LoraConfig
from quantlora.errors import AdapterError
from quantlora.layers.layer import LoraLayer
from quantlora.wrapping.patterns import as_pattern
from quantlora.wrapping.targets import by_pattern


@torch.no_grad()
def prepare_hot_swap(model: nn.Module, r: int, adapter_name: str = "default") -> None:
    """Make room for adapters up to rank ``r`` in the slot ``adapter_name``; before compiling.

    What the adapter computes stays the same; its A and B become new parameters. A layer that
    cannot have rank ``r`` gets the largest it can have.

    Raises:
        AdapterError: there is no such adapter, or it is merged.
    """
    config = known_adapter(model, adapter_name)
    _check_factors_only(config, "the slot")
    slots = _slots(model, adapter_name)
    for layer in slots.values():
        _pad(layer, adapter_name, config, r)
    r, ranks = as_pattern({path: layer.r[adapter_name] for path, layer in slots.items()})
    alphas = {path: layer.lora_alpha[adapter_name] for path, layer in slots.items()}
    alpha, other_alphas = as_pattern(alphas)
    adapter_state(model).configs[adapter_name] = replace(
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
) -> None:
    """Put the values of the adapter in ``folder`` in place of those of ``adapter_name``.

    Everything is checked before the first value is changed. Layers of the slot that the new
    adapter does not have get no update.

    Args:
        folder: written by quantlora or PEFT, or an id on the hub.
        revision, token: for the hub.

    Raises:
        AdapterFileError: the files are missing or damaged.
        AdapterError: the adapter does not fit the slot: a larger rank (see `prepare_hot_swap`),
            other layers, another variant; or the slot is merged.
    """
    place = find_folder(folder, adapter_name, revision, token)
    saved = read_adapter(place)
    slots = _slots(model, adapter_name)
    given = by_path(str(place), saved.tensors, model, ())
    _check(known_adapter(model, adapter_name), saved.config, slots, given)
    new = {
        path: _fitted(path, layer, adapter_name, saved.config, given.get(path))
        for path, layer in slots.items()
    }
    for path, layer in slots.items():
        for name, parameter in layer.adapter_tensors(adapter_name).items():
            parameter.copy_(new[path][name])


def _slots(model: nn.Module, adapter: str) -> dict[str, LoraLayer]:
    known_adapter(model, adapter)
    slots = {plain_path(p): layer for p, layer in lora_layers(model) if adapter in layer.adapters}
    for path, layer in slots.items():
        if adapter in layer.merged:
            raise AdapterError(f"{path}: adapter {adapter!r} is merged; unmerge it first.")
    return slots


def _pad(layer: LoraLayer, name: str, config: LoraConfig, r: int) -> None:
    old = layer.adapter_tensors(name)
    A = old[layer.factor_names[0]]
    rank = max(layer.r[name], min(r, layer.out_features, layer.in_features))
    layer.add_factors(name, config, rank, A.dtype)
    for key, parameter in layer.adapter_tensors(name).items():
        if parameter is not old[key]:
            parameter.copy_(_widened(old[key], parameter))
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
    for name in ("modules_to_save", "target_parameters", "bias"):
        if getattr(config, name) not in (None, [], "none"):
            raise AdapterError(
                f"{which} has {name}, and a hot swap is of LoRA layers only: load it as an adapter "
                f"of its own."
            )


def _fitted(
    path: str, layer: LoraLayer, name: str, config: LoraConfig, given: dict[str, Tensor] | None
) -> dict[str, Tensor]:
    """The new tensors, in the shapes and with the scale of the slot."""
    slot = layer.adapter_tensors(name)
    if given is None:
        return {key: torch.zeros_like(one) for key, one in slot.items()}
    if extra := [key for key in given if key not in slot]:
        raise AdapterError(f"{path}: the slot has no {extra[0]} (lora_bias?).")
    key_A, key_B = layer.factor_names
    r = len(given[key_A])
    if r > layer.r[name]:
        raise AdapterError(
            f"{path}: the adapter has rank {r}, the slot {layer.r[name]}: call "
            f"quantlora.prepare_hot_swap(model, r={r}) before the model is compiled."
        )
    alpha = by_pattern(path, config.alpha_pattern, config.lora_alpha) / layer.alpha_factor(name)
    ratio = config.scaling(r, alpha) / layer.scaling[name]
    scaled = {key_B: ratio, "lora_B.bias": ratio}
    return {
        key: _widened(given[key] * scaled.get(key, 1.0), one) if key in given else 0 * one
        for key, one in slot.items()
    }


def _widened(tensor: Tensor, like: Tensor) -> Tensor:
    """``tensor`` in the corner of zeros of ``like``'s shape."""
    wide = torch.zeros_like(like)
    wide[tuple(slice(size) for size in tensor.shape)] = tensor.to(like)
    return wide
