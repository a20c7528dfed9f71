"""The tensors of a file for a slot of a larger rank and another scale (`hot_swap`).

A has the rank first, B second. B of a grouped convolution ``(out, r / groups, ...)`` reads the
rows of A group by group, so what is added to A goes to the end of each group.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from quantlora.checkpoint.match_tensors import check_finite, check_shapes
from quantlora.checkpoint.zero_filled import zero_filled
from quantlora.config.lora_config import LoraConfig
from quantlora.config.patterns import by_pattern
from quantlora.errors import AdapterError
from quantlora.layers.layer import LoraLayer


def file_scaling(path: str, layer: LoraLayer, name: str, config: LoraConfig) -> float:
    """What the file multiplies the update of ``layer`` with; ``config`` is the file's."""
    r = by_pattern(path, config.rank_pattern, config.r)
    alpha = by_pattern(path, config.alpha_pattern, config.lora_alpha)
    return config.scaling(r, alpha / layer.alpha_factor(name))


def slot_tensors(
    source: str,
    path: str,
    layer: LoraLayer,
    name: str,
    config: LoraConfig,
    given: dict[str, Tensor] | None,
) -> dict[str, Tensor]:
    """The tensors ``given`` for ``layer`` in the shapes and with the scale of the slot ``name``.

    Args:
        source: the file, for messages.
        path: the layer's, by which the file's config may give it a rank and alpha of its own.
        config: the file's.
        given: by name; None where the file has none for this layer, which then has no update.

    Raises:
        AdapterFileError: names or shapes are not those of the layer at the file's rank.
        AdapterError: the slot has no room for that rank.
    """
    slot = layer.adapter_tensors(name)
    if given is None:
        return {key: torch.zeros_like(tensor) for key, tensor in slot.items()}
    r = by_pattern(path, config.rank_pattern, config.r)
    _check_rank(path, layer, name, r)
    _check_tensors(f"{source}, {path}", layer, name, given, r, config.lora_bias)
    ratio = file_scaling(path, layer, name, config) / layer.scaling[name]
    scaled = {layer.factor_names[1]: ratio, "lora_B.bias": ratio}
    new = {
        key: widened(layer, key, given[key].to(tensor), tensor) * scaled.get(key, 1.0)
        if key in given
        else torch.zeros_like(tensor)
        for key, tensor in slot.items()
    }
    for key, tensor in new.items():
        check_finite(f"{source}, {path}", key, tensor)
    return new


def _check_rank(path: str, layer: LoraLayer, name: str, r: int) -> None:
    if not layer.scaling[name]:
        raise AdapterError(
            f"{path}: the slot's scale is 0 (lora_alpha=0), so nothing in it has an effect: wrap "
            f"with another lora_alpha."
        )
    if r > layer.r[name] or r % layer.rank_multiple:
        raise AdapterError(
            f"{path}: the adapter has rank {r}, the slot {layer.r[name]}: call "
            f"quantlora.prepare_hot_swap(model, r={r}) before the model is compiled."
        )


def _check_tensors(
    source: str, layer: LoraLayer, name: str, given: Mapping[str, Tensor], r: int, bias: bool
) -> None:
    """The names and shapes are those of the slot at rank ``r``; only some adapters have a bias."""
    slot = layer.adapter_tensors(name)
    if extra := [key for key in given if key not in slot]:
        raise AdapterError(f"{source}: the slot has no {extra[0]} (lora_bias?).")
    shapes = {key: _shape_at(layer, key, tensor, r) for key, tensor in slot.items()}
    if not bias:
        shapes.pop("lora_B.bias", None)
    check_shapes(source, shapes, given)


def _shape_at(layer: LoraLayer, key: str, tensor: Tensor, r: int) -> tuple[int, ...]:
    """The shape of ``tensor``, which ``layer`` has under ``key``, in an adapter of rank ``r``."""
    first, *others = tensor.shape
    key_A, key_B = layer.factor_names
    if key == key_A:
        return r, *others
    return (first, r // layer.rank_multiple, *others[1:]) if key == key_B else (first, *others)


def widened(layer: LoraLayer, key: str, tensor: Tensor, like: Tensor) -> Tensor:
    """``tensor`` with zeros up to the rank of ``like``, in its dtype and on its device."""
    groups = layer.rank_multiple if key == layer.factor_names[0] else 1
    wide = like.reshape(groups, -1, *like.shape[1:]).shape
    narrow = tensor.to(like).reshape(groups, -1, *tensor.shape[1:])
    return zero_filled(narrow, wide).reshape(like.shape)
