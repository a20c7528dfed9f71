"""From float rows to codes and scales, and back.

A block is ``block_size`` neighbours along a row, the inputs of one output; the last block of a
row may be shorter. Where the row is a multiple of the block these are bitsandbytes' blocks.

    nf:       weight = level[code] * scale              scale = largest magnitude in the block
    uniform:  weight = (code - zero) * scale            scale = (max - min) / (2 ** bits - 1)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from quantlora_normalfloat.packing import look_up, packed_bytes

#: Elements worked on at a time; the temporaries stay in cache and out of the peak memory.
_CHUNK = 1 << 20
#: The same, for what is done again in every forward.
_IN_CACHE = 1 << 17
#: Up to so many levels counting thresholds beats a binary search (measured: 63 to 154 ms for 16).
_FEW = 16
#: The smallest number of float32, for steps between denormals.
_LEAST = 2.0**-149


@dataclass(frozen=True)
class Encoded:
    """``codes`` uint8 ``(out, in)``; ``scales`` and, for "uniform", ``zeros`` ``(out, blocks)``."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None = None


def encode(
    weight: Tensor,
    levels: Tensor,
    block_size: int,
    zeros: bool,
    scales: Tensor | None = None,
) -> Encoded:
    """Quantize ``weight`` ``(out, in)`` to the nearest levels, in float32.

    Args:
        scales: take these ``(out, blocks)``; else the blocks' own, 0 for a block of one value.
    """
    step = max(1, _CHUNK // max(1, weight.shape[1]))
    given = [None] * len(weight) if scales is None else torch.split(scales, step)
    parts = [
        _encode_rows(rows, levels, block_size, zeros, scale)
        for rows, scale in zip(torch.split(weight, step), given, strict=False)
    ]
    return Encoded(
        torch.cat([part.codes for part in parts]),
        torch.cat([part.scales for part in parts]),
        torch.cat([part.zeros for part in parts if part.zeros is not None]) if zeros else None,
    )


def _encode_rows(
    rows: Tensor, levels: Tensor, block_size: int, zeros: bool, scale: Tensor | None
) -> Encoded:
    width = rows.shape[1]
    # The last value repeated leaves minimum, maximum and magnitude of a short block as they are.
    filled = F.pad(rows.float()[None], (0, -width % block_size), mode="replicate")[0]
    blocks = filled.view(rows.shape[0], -1, block_size)
    low, high = blocks.aminmax(dim=-1)
    if scale is None:
        scale = _range(low, high, len(levels) - 1) if zeros else torch.maximum(-low, high)
    safe = torch.where(scale == 0, 1.0, scale)
    zero = -low / safe if zeros else None
    x = blocks / safe[..., None]
    codes = nearest(x if zero is None else x + zero[..., None], levels)
    return Encoded(codes.view(rows.shape[0], -1)[:, :width], scale, zero)


def _range(low: Tensor, high: Tensor, steps: int) -> Tensor:
    """The scale of each block; 0 where all values are one, which the zero-point alone keeps."""
    span = high - low
    scale = torch.where(span.isinf(), high / steps - low / steps, span / steps)
    return torch.where(span > 0, scale.clamp(min=_LEAST), 0.0)


def nearest(x: Tensor, levels: Tensor) -> Tensor:
    """Index of the level next to each ``x``, as uint8; ``levels`` ascend."""
    between = (levels[1:] + levels[:-1]) / 2
    if len(levels) > _FEW:
        return torch.bucketize(x, between, out_int32=True).to(torch.uint8)
    codes = torch.zeros(x.shape, dtype=torch.uint8, device=x.device)
    for threshold in between:
        codes += x > threshold
    return codes


def decode(values: Tensor, scales: Tensor, zeros: Tensor | None, block_size: int) -> Tensor:
    """``(values - zeros) * scales`` in place; ``values`` are levels ``(out, in)``, float32."""
    width = values.shape[1]
    whole = width - width % block_size
    parts = [torch.unflatten(values[:, :whole], 1, (-1, block_size))] if whole else []
    parts += [values[:, None, whole:]] if whole < width else []
    first = 0
    for part in parts:
        own = slice(first, first + part.shape[1])
        if zeros is not None:
            part.sub_(zeros[:, own, None])
        part.mul_(scales[:, own, None])
        first = own.stop
    return values


def unpacked(
    packed: Tensor,
    levels: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    shape: tuple[int, int],
    block_size: int,
    dtype: torch.dtype,
) -> Tensor:
    """The weight ``(out, in)`` of a packed stream, rounded to ``dtype`` once.

    By some rows at a time, whose float32 values stay in cache; a compiler sees one expression.
    """
    out_features, in_features = shape
    if torch.compiler.is_compiling() or not in_features:
        values = look_up(packed, levels, out_features * in_features).view(shape)
        return decode(values, scales, zeros, block_size).to(dtype)
    bits = levels.numel().bit_length() - 1
    weight = torch.empty(shape, dtype=dtype, device=packed.device)
    step = max(1, _IN_CACHE // in_features // 8) * 8  # so that each part begins with a byte
    for first in range(0, out_features, step):
        own = slice(first, min(first + step, out_features))
        count = (own.stop - first) * in_features
        stream = packed[first * in_features * bits // 8 :][: packed_bytes(count, bits)]
        values = look_up(stream, levels, count).view(-1, in_features)
        weight[own] = decode(values, scales[own], None if zeros is None else zeros[own], block_size)
    return weight
