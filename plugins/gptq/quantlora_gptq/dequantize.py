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

from quantlora import AffineWeight, unpack_bits
from quantlora_gptq.layout import Layout, layout, tensor

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
    """``(out_features, in_features)`` from the three buffers."""
    weight = codes(qweight, form).to(scales.dtype)
    zero, scale = zeros(qzeros, form).to(scales.dtype), scales.t()
    if form.group_index is not None:
        return weight.sub_(zero[:, form.group_index]).mul_(scale[:, form.group_index])
    grouped = weight.view(form.out_features, form.groups, -1)
    return grouped.sub_(zero.unsqueeze(-1)).mul_(scale.unsqueeze(-1)).view_as(weight)


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
    return torch.compile(matrix) if os.environ.get(COMPILE) == "1" else matrix
