"""From packed buffers to a float matrix, bit for bit as the libraries do it.

    W[o, i] = scales[g(i), o] · (code[o, i] - zero[g(i), o])

The difference of two small integers is exact in every float dtype, so the one rounding is that of
the product, in the dtype of the scales. Everything is vectorised torch; it is compiled only where
``QUANTLORA_GPTQ_COMPILE=1`` asks for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from quantlora import AffineWeight, look_up, unpack_bits
from quantlora_gptq.layout import Layout, layout, tensor

#: Elements worked on at a time.
_IN_CACHE = 1 << 17
#: Set to 1 to compile the arithmetic with `torch.compile`.
COMPILE = "QUANTLORA_GPTQ_COMPILE"


def dequantize(layer: nn.Module) -> Tensor:
    """``(out_features, in_features)`` in the dtype of the scales."""
    return _matrix()(
        tensor(layer, "qweight"), tensor(layer, "qzeros"), tensor(layer, "scales"), layout(layer)
    )


def codes(qweight: Tensor, form: Layout) -> Tensor:
    """Codes uint8 ``(out_features, in_features)``."""
    return unpack_bits(qweight.t(), form.bits, form.in_features)


def zeros(qzeros: Tensor, form: Layout) -> Tensor:
    """Zero-points int16 ``(out_features, groups)``."""
    raw = unpack_bits(qzeros, form.bits, form.out_features).to(torch.int16) + form.zero_offset
    return (raw & (2**form.bits - 1) if form.zero_wraps else raw).t()


def matrix(qweight: Tensor, qzeros: Tensor, scales: Tensor, form: Layout) -> Tensor:
    """``(out_features, in_features)`` from the three buffers, in one expression."""
    weight = codes(qweight, form).to(scales.dtype)
    zero, scale = zeros(qzeros, form).to(scales.dtype), scales.t()
    return _scaled(weight, zero, scale, form, weight)


def matrix_by_rows(qweight: Tensor, qzeros: Tensor, scales: Tensor, form: Layout) -> Tensor:
    """The same, some rows at a time, whose codes stay in cache."""
    zero, scale = zeros(qzeros, form).to(scales.dtype), scales.t()
    shape = (form.out_features, form.in_features)
    weight = torch.empty(shape, dtype=scales.dtype, device=scales.device)
    step = max(1, _IN_CACHE // max(1, form.in_features))
    for first in range(0, form.out_features, step):
        own = slice(first, first + step)
        part = _numbers(qweight[:, own].t(), form.bits, scales.dtype)
        part = part[:, : form.in_features].contiguous()
        _scaled(part, zero[own], scale[own], form, weight[own])
    return weight


def _scaled(codes: Tensor, zero: Tensor, scale: Tensor, form: Layout, out: Tensor) -> Tensor:
    """``(codes - zero) · scale`` in ``out``, over ``codes``; zero and scale ``(out, groups)``."""
    if form.group_index is not None:
        codes.sub_(zero[:, form.group_index])
        return torch.mul(codes, scale[:, form.group_index], out=out)
    shape = (len(codes), form.groups, -1)
    grouped = codes.view(shape).sub_(zero.unsqueeze(-1))
    torch.mul(grouped, scale.unsqueeze(-1), out=out.view(shape))
    return out


def _numbers(words: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """The codes (2 to 4 bits) in ``words`` ``(rows, n)`` as numbers: a look-up for each byte."""
    octets: Tensor = words.contiguous().view(torch.uint8)
    index, width = octets.to(torch.int32), 8
    if bits == 3:  # two units of 12 bits in three bytes
        low, middle, high = torch.unflatten(index, -1, (-1, 3)).unbind(-1)
        index = torch.stack([low | (middle & 15) << 8, middle >> 4 | high << 4], -1)
        width = 12
    unit = torch.arange(2**width, dtype=torch.int32, device=words.device).unsqueeze(-1)
    shifts = torch.arange(0, width, bits, dtype=torch.int32, device=words.device)
    table = ((unit >> shifts) & (2**bits - 1)).to(dtype)
    return look_up(index.view(-1), table).view(len(words), -1)


def to_affine(layer: nn.Module) -> AffineWeight:
    """The layer as a grid: codes, scales, zero-points and the groups of its inputs."""
    form, scales = layout(layer), tensor(layer, "scales").t()
    return AffineWeight(
        codes(tensor(layer, "qweight"), form),
        scales,
        zeros(tensor(layer, "qzeros"), form).to(scales.dtype),
        form.bits,
        form.group_size,
        form.group_index,
    )


@cache
def _matrix() -> Callable[[Tensor, Tensor, Tensor, Layout], Tensor]:
    return torch.compile(matrix) if os.environ.get(COMPILE) == "1" else _eager


def _eager(qweight: Tensor, qzeros: Tensor, scales: Tensor, form: Layout) -> Tensor:
    """A compiler that traces through the layer is given the one expression; so are 8 bits."""
    by = matrix if torch.compiler.is_compiling() or form.bits == 8 else matrix_by_rows
    return by(qweight, qzeros, scales, form)
