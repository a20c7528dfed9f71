"""quanto's tensors: what they hold, and how a weight is packed as one of them.

    8 bits:      W = code · scale                a scale for each row
    2, 4 bits:   W = code · scale - shift        both for each group along a row, or the row

They are unpacked here, in float32: the library would compile a kernel for it at the first use on a
CPU, and rounds to the dtype of its scales.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from quantlora import AffineWeight, PackedState

#: By the name that Transformers' QuantoConfig has: bits, and the largest code of 8 bits.
KINDS = {"int2": 2, "int4": 4, "int8": 8, "float8": 8}


def kind_of(weight: Any) -> str:
    """``int4`` and so on, or the library's name of another type."""
    name: str = weight.qtype.name
    return {"qfloat8_e4m3fn": "float8"}.get(name, name.removeprefix("q"))


def group_size(weight: Any) -> int | None:
    """Neighbours along a row that share a scale; None: a row."""
    size: int | None = getattr(weight, "_group_size", None)
    return size


def dequantize(weight: Any) -> Tensor:
    """``(out, in)`` in float32."""
    weight = _general(weight)
    values, scale = _codes(weight).float(), weight._scale.float()
    shift = getattr(weight, "_shift", None)
    if shift is None:
        values = values * scale
    elif shift.is_floating_point():
        values = values * scale - shift.float()
    else:
        values = (values - shift.float()) * scale
    found: Tensor = values.view(weight.shape)
    return found


def _general(weight: Any) -> Any:
    """The same weight, out of the layout of a kernel."""
    for back in ("weight_qbits_tensor", "weight_qbytes_tensor"):
        if type(weight).__name__ not in _GENERAL and hasattr(weight, back):
            return getattr(weight, back)()
    return weight


_GENERAL = ("WeightQBitsTensor", "WeightQBytesTensor")


def _codes(weight: Any) -> Tensor:
    """Codes ``(groups, group)``, or ``(out, in)``; the rows of a word are far apart."""
    data = weight._data
    if not hasattr(data, "bits"):
        codes: Tensor = data
        return codes
    words, mask = data._data, 2**data.bits - 1
    parts = [words >> shift & mask for shift in range(0, 8, data.bits)]
    return torch.cat(parts)[: data.shape[0]]


def to_affine(weight: Any) -> AffineWeight | None:
    """The grid of integer codes, with float zero-points; None for 8-bit floats."""
    if weight.qtype.is_floating_point:
        return None
    weight = _general(weight)
    rows, columns = weight.shape
    bits, size = weight.qtype.bits, group_size(weight) or columns
    codes, (scale, *shift) = _codes(weight), _grid_of(weight)
    scale = scale.expand(codes.shape[0], 1)
    if shift:
        codes, scale = torch.where(scale == 0, 0, codes), torch.where(scale == 0, 1, scale)
        zeros = shift[0] / scale
    else:
        codes, zeros = (codes.to(torch.int16) + 128).to(torch.uint8), torch.full_like(scale, 128)
    scales, zeros = scale.reshape(rows, -1), zeros.reshape(rows, -1)
    return AffineWeight(codes.reshape(rows, columns), scales, zeros, bits, size)


def layer_state(layer: Any) -> PackedState:
    """The library's own state dict, which takes its tensors apart, and what it does not say."""
    settings = {
        "in_features": layer.in_features,
        "out_features": layer.out_features,
        "bias": layer.bias is not None,
        "qtype": layer.weight.qtype.name,
        "group_size": group_size(layer.weight),
    }
    return PackedState(settings, layer.state_dict())


def from_layer_state(state: PackedState) -> Any:
    """The layer, its weight in no kernel's layout."""
    from optimum.quanto import QLinear, WeightQBitsTensor, WeightQBytesTensor, qtypes

    known, tensors = state.settings, dict(state.tensors)
    shape, qtype = (known["out_features"], known["in_features"]), qtypes[known["qtype"]]
    linear = nn.Linear(shape[1], shape[0], bool(known["bias"]), device="meta")
    layer: Any = QLinear.qcreate(linear, qtype, device="meta")
    facts = {"qtype": qtype, "axis": 0, "size": shape, "stride": (shape[1], 1), "missing_keys": []}
    if qtype.bits == 8:
        weight = WeightQBytesTensor.load_from_state_dict(
            tensors, "weight.", activation_qtype=None, **facts
        )
    else:
        weight = WeightQBitsTensor.load_from_state_dict(
            tensors, "weight.", group_size=known["group_size"], **facts
        )
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.input_scale, layer.output_scale = tensors["input_scale"], tensors["output_scale"]
    layer.bias = nn.Parameter(tensors["bias"], requires_grad=False) if known["bias"] else None
    return layer


def pack(values: Tensor, kind: str, size: int | None, like: Any = None) -> Any:
    """A tensor of the library's; of ``like`` each scale is kept that errs less than a new one."""
    from optimum.quanto import qtypes, quantize_weight

    qtype = qtypes[{"float8": "qfloat8_e4m3fn"}.get(kind, f"q{kind}")]
    grid = _grid(values, qtype, size)
    if like is not None:
        grid = _closer(values, qtype, size, grid, _grid_of(like))
    scale, *shift = (part.to(values.dtype) for part in grid)
    scale = torch.where(scale == 0, 1, scale)  # of zeros: 0 / 0 would be the codes
    scale = scale.reshape(()) if qtype.bits == 8 and len(values) == 1 else scale
    return quantize_weight(values, qtype, 0, scale, *shift, group_size=size, optimized=False)


def _grid(values: Tensor, qtype: Any, size: int | None) -> tuple[Tensor, ...]:
    """Scale, and shift below 8 bits, as the library chooses them; ``(groups, 1)``."""
    wide = values.reshape(-1, size or values.shape[1])
    if qtype.bits == 8:
        return (wide.abs().amax(1, keepdim=True) / qtype.qmax,)
    low, high = wide.amin(1, keepdim=True), wide.amax(1, keepdim=True)
    return (high - low) / (2**qtype.bits - 1), -low


def _grid_of(weight: Any) -> tuple[Tensor, ...]:
    """That of a tensor of the library's, in float32."""
    weight = _general(weight)
    scale, shift = weight._scale.float(), getattr(weight, "_shift", None)
    if shift is None:
        return (scale.reshape(-1, 1),)
    return scale, shift.float() if shift.is_floating_point() else shift.float() * scale


def _closer(
    values: Tensor, qtype: Any, size: int | None, *grids: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """For each row of a group the grid that errs less."""
    wide = values.float().reshape(-1, size or values.shape[1])
    errors = [_error(wide, qtype, *grid) for grid in grids]
    return tuple(
        torch.where(errors[1] <= errors[0], b.to(a), a) for a, b in zip(*grids, strict=True)
    )


def _error(wide: Tensor, qtype: Any, scale: Tensor, shift: Tensor | None = None) -> Tensor:
    scale = torch.where(scale == 0, 1, scale).float()
    low, high = (qtype.qmin, qtype.qmax) if shift is None else (0, 2**qtype.bits - 1)
    moved = 0.0 if shift is None else shift.float()
    codes = (wide + moved) / scale
    codes = codes if qtype.is_floating_point else codes.round()
    codes = codes.clamp(low, high)
    if qtype.is_floating_point:
        codes = codes.to(qtype.dtype).float()
    return ((codes * scale - moved) - wide).square().sum(1, keepdim=True)


def default_group(columns: int, kind: str) -> int | None:
    """The library's choice: 128, or the largest of 96, 64, 32 that divides; None: a row."""
    if KINDS[kind] == 8 or columns <= 128:
        return None
    size = next((size for size in (128, 96, 64, 32) if columns % size == 0), None)
    return size
