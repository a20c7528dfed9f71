"""`HQQLinear` taken apart: codes, and float scales and zero-points by groups.

    W = (code - zero) · scale, as a matrix (group_size, -1) for axis 0, (-1, group_size) for axis 1

So a group is of neighbours along a row for axis 1, and of outputs far apart for axis 0.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from quantlora import AffineWeight, BackendError


def codes(layer: Any) -> Tensor:
    """Codes float32 in the library's grouped shape."""
    from hqq.core.quantize import Quantizer

    meta, words = layer.meta, layer.W_q
    words = words.view(meta["unpack_view_dtype"]) if meta["view_as_float"] else words
    if meta["packing"] is None:
        found: Tensor = words.float()
        return found
    found = Quantizer.unpack[meta["packing"]](words, dtype=torch.float32)
    groups = meta["shape"].numel() // meta["group_size"]
    return found[: meta["group_size"] if meta["axis"] == 0 else groups]  # 3 bits are filled up


def grid(layer: Any) -> tuple[Tensor, Tensor]:
    """Scales and zero-points in float32, one dimension of size 1, where the codes are."""
    device = layer.W_q.device  # moving a model moves the codes alone
    return layer.meta["scale"].to(device).float(), layer.meta["zero"].to(device).float()


def dequantize(layer: Any) -> Tensor:
    scale, zero = grid(layer)
    return codes(layer).sub_(zero).mul_(scale).view(layer.meta["shape"])


def to_affine(layer: Any) -> AffineWeight | None:
    """The layer as a grid; None where a group is not of neighbours in a row."""
    (rows, columns), size = layer.meta["shape"], layer.meta["group_size"]
    if layer.meta["axis"] == 0 or columns % size:
        return None
    scale, zero = (part.view(rows, -1) for part in grid(layer))
    own = codes(layer).view(rows, columns).to(torch.uint8)
    return AffineWeight(own, scale, zero, layer.meta["nbits"], size)


def fill(layer: Any, own: Tensor, scale: Tensor, zero: Tensor) -> None:
    """Put codes, in the grouped shape, and their grid into the layer."""
    from hqq.core.quantize import Quantizer

    meta, dtype = layer.meta, layer.compute_dtype
    words = own if meta["packing"] is None else Quantizer.pack[meta["packing"]](own)
    layer.W_q = nn.Parameter(words.view(dtype) if meta["view_as_float"] else words, False)
    layer.meta = {**meta, "scale": scale.to(dtype).clone(), "zero": zero.to(dtype).clone()}


def pack(linear: nn.Linear, nbits: int, group_size: int | None, axis: int) -> nn.Module:
    """A layer of the library's own making."""
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    config = BaseQuantizeConfig(nbits=nbits, group_size=group_size, axis=axis)
    where = {"compute_dtype": linear.weight.dtype, "device": str(linear.weight.device)}
    layer: nn.Module = HQQLinear(copy.deepcopy(linear), config, del_orig=True, **where)
    fill(layer, codes(layer), *grid(layer))  # the solver leaves inference tensors behind
    return layer.train(linear.training)


def from_affine(weight: AffineWeight, bias: Tensor | None) -> nn.Module:
    """A float32 layer with just these codes, scales and zero-points."""
    if weight.group_index is not None:
        raise BackendError("hqq: groups of inputs that are not neighbours cannot be held.")
    blank = nn.Linear(weight.codes.shape[1], weight.codes.shape[0], bias=False)
    layer: Any = pack(blank.to(weight.codes.device), weight.bits, weight.group_size, 1)
    own = weight.codes.view(-1, weight.group_size)
    fill(layer, own, weight.scales.float().view(-1, 1), weight.zeros.float().view(-1, 1))
    layer.bias = None if bias is None else bias.detach().clone()
    return layer  # type: ignore[no-any-return]


def repack(linear: nn.Linear, like: Any) -> nn.Module:
    """``linear`` with the settings of ``like``.

    Each group keeps the grid of ``like``, moves its zero-point, or gets a new grid, whichever
    errs least.
    """
    meta = like.meta
    new: Any = pack(linear, meta["nbits"], meta["group_size"], meta["axis"])
    new.compute_dtype, new.meta["compute_dtype"] = like.compute_dtype, like.compute_dtype
    values = linear.weight.detach().float().view(codes(new).shape)
    (scale, zero), top = grid(like), 2 ** meta["nbits"] - 1
    moved = (codes(like) - values / scale).mean(meta["axis"], keepdim=True)
    tried: list[tuple[Tensor, ...]] = []
    for step, middle in ((scale, zero), (scale, moved), grid(new)):
        own = (values / step + middle).round().clamp(0, top)
        error = ((own - middle) * step - values).square().sum(meta["axis"], keepdim=True)
        tried.append((error, own, step, middle))
    best = min_by_group(tried)
    fill(new, *best)
    return new  # type: ignore[no-any-return]


def min_by_group(tried: list[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and zero-points of the try that errs least, for each group."""
    best = tried[0]
    for other in tried[1:]:
        better = best[0] <= other[0]
        best = tuple(torch.where(better, *pair) for pair in zip(best, other, strict=True))
    _, own, step, middle = best
    return own, step, middle


def check(layer: Any, path: str) -> None:
    """Raise `BackendError` where the layer cannot be read, naming ``path``."""
    meta, problem = layer.meta, ""
    if meta.get("quant_scale") or meta.get("quant_zero") or "zero_scale" in meta:
        problem = "its scales are quantized or offloaded, which the library itself has given up"
    elif missing := [name for name in ("scale", "zero", "shape") if name not in meta]:
        problem = f"it has no {', '.join(missing)}"
    elif codes(layer).numel() != meta["shape"].numel():
        problem = f"W_q holds {codes(layer).numel()} codes for a weight of {tuple(meta['shape'])}"
    elif not all(part.isfinite().all() for part in grid(layer)) or not grid(layer)[0].any():
        problem = "its scales are all zero, or not finite"
    if problem:
        raise BackendError(f"{path}: this HQQ layer cannot be read: {problem}. Quantize it again.")
