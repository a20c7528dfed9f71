"""Packing by the library's compressors, with scales that span the values."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from quantlora import BackendError
from quantlora_compressed_tensors.layer import (
    HALF,
    by_group,
    compressor,
    decompress,
    decompressed,
    state,
)

GROUP_SIZES = (128, 64, 32, 16)


def new_scheme(name: str, group_size: int | None, in_features: int) -> Any:
    """The library's preset ``name`` for linear layers; groups of integers as asked."""
    from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES, preset_name_to_scheme

    if name not in PRESET_SCHEMES or name == "UNQUANTIZED":
        known = ", ".join(sorted({*PRESET_SCHEMES} - {"UNQUANTIZED"}))
        raise BackendError(f"compressed_tensors: no scheme {name!r}; the library has {known}.")
    scheme = preset_name_to_scheme(name, ["Linear"])
    inputs = scheme.input_activations
    if inputs is not None and not inputs.dynamic:
        raise BackendError(f"compressed_tensors: scheme {name!r} needs scales of activations.")
    weights = scheme.weights
    if weights.strategy == "group" and weights.type == "int":
        usable = [size for size in GROUP_SIZES if in_features % size == 0]
        weights.group_size = group_size or next(iter(usable), in_features)
    if weights.group_size and in_features % weights.group_size:
        raise BackendError(
            f"compressed_tensors: groups of {weights.group_size} do not divide {in_features} "
            f"inputs; leave the layer out with exclude_modules."
        )
    return scheme


def pack(linear: nn.Linear, scheme: Any, like: nn.Module | None) -> nn.Module:
    """A packed copy of ``linear``; each group keeps the scale of ``like`` where that errs less."""
    weight = linear.weight.detach()
    parts = _parts(weight, scheme)
    if like is not None:
        parts = _better(weight, _in_dtype_of(like, parts), scheme, decompress(like))
    packed = compressor(scheme).compress({"weight": weight, **parts}, scheme)
    layer = _empty(linear, scheme) if like is None else copy.deepcopy(like)
    _fill(layer, packed, linear.bias)
    return layer.train(linear.training)


def _parts(weight: Tensor, scheme: Any, global_scale: Tensor | None = None) -> dict[str, Tensor]:
    """Scales, zero-points and the scale of the scales, where there is one."""
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    args, parts = scheme.weights, {}
    low, high = (by_group(weight, args, reduce) for reduce in ("amin", "amax"))
    if args.strategy == "tensor_group":
        own = generate_gparam(low.amin(), high.amax())
        keep = global_scale is not None and bool((global_scale <= own).all())
        parts["weight_global_scale"] = global_scale if keep else own
    scale, zero = calculate_qparams(low, high, args, parts.get("weight_global_scale"))
    return {"weight_scale": scale, "weight_zero_point": zero, **parts}


def _in_dtype_of(like: nn.Module, parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """``parts`` with scales in half precision where those of ``like`` are."""
    own = state(like)["weight_scale"].dtype
    scale = parts["weight_scale"]
    return {**parts, "weight_scale": scale.to(own) if own in HALF else scale}


def _better(
    weight: Tensor, new: dict[str, Tensor], scheme: Any, old: dict[str, Tensor]
) -> dict[str, Tensor]:
    """For each group the scale, old or new, that errs less."""
    held = old.get("weight_global_scale")
    if held is not None:
        new = _parts(weight, scheme, held)
        if not torch.equal(new["weight_global_scale"], held):
            return new
    old = {name: old.get(name, torch.zeros_like(value)).to(value) for name, value in new.items()}
    errors = [_error(weight, parts, scheme) for parts in (old, new)]
    keep = errors[0] <= errors[1]
    scales = {n: torch.where(keep, old[n], new[n]) for n in ("weight_scale", "weight_zero_point")}
    return {**new, **scales}


def _error(weight: Tensor, parts: dict[str, Tensor], scheme: Any) -> Tensor:
    """The sum of squares by group."""
    again = decompressed(compressor(scheme).compress({"weight": weight, **parts}, scheme), scheme)
    return by_group((again["weight"].float() - weight).square(), scheme.weights, "sum")


def _empty(linear: nn.Linear, scheme: Any) -> nn.Module:
    from compressed_tensors.quantization import QuantizationStatus
    from compressed_tensors.quantization.lifecycle.initialize import (
        initialize_module_for_quantization,
    )

    size = (linear.in_features, linear.out_features, linear.bias is not None)
    layer: Any = nn.Linear(*size, device="meta")
    initialize_module_for_quantization(layer, scheme)
    layer.quantization_status = QuantizationStatus.COMPRESSED
    return layer  # type: ignore[no-any-return]


def _fill(layer: nn.Module, packed: dict[str, Tensor], bias: Tensor | None) -> None:
    """Put ``packed`` in place of the layer's tensors; those of activations stay."""
    for name in [*layer._parameters]:
        if name.startswith("weight") or name == "bias" or layer._parameters[name].is_meta:  # type: ignore[union-attr]
            del layer._parameters[name]
    for name, value in packed.items():
        layer.register_parameter(name, nn.Parameter(value.contiguous(), requires_grad=False))
    held = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
    layer.register_parameter("bias", held)
