"""Weights on a 4-bit grid for inference on a CPU: torch's kernel multiplies with the codes.

It reads a quarter of what a bfloat16 copy has. torch counts codes from -8 on:

    W = (code - 8) · scale + zero        zero = (8 - zero-point) · scale

Scales and zeros are rounded to bfloat16, the dtype of the product, whose error is the same
(2.4e-3 against 2.3e-3 of a bfloat16 copy; 8192 x 2048, one row: 0.9 ms against 3.6).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from quantlora.formats.affine import AffineWeight
from quantlora.formats.inference_copy import InferenceCopy, Product, dense_copy

#: Inputs that may share a scale, as the kernel has them.
_GROUPS = (32, 64, 128, 256)
#: Outputs that the kernel computes together.
_TILE = 16


def grid_copy(
    affine: Callable[[], AffineWeight | None],
    dequantize: Callable[[], Tensor],
    shape: tuple[int, int],
    dtype: torch.dtype,
    bits: int,
    group_size: int | None,
    neighbours: bool = True,
) -> InferenceCopy:
    """The rule for weights on a grid: codes for torch's int4 kernel where it takes them.

    Else, and for other widths and dtypes, `dense_copy`: its floats are the very weight.

    Args:
        affine: gives the weight as codes, scales and zero-points.
        dequantize: gives it as floats ``shape`` in ``dtype``.
        group_size, neighbours: inputs that share a scale, and whether they are next to each other.
    """
    fits = bits == 4 and neighbours and dtype == torch.bfloat16 and has_kernel()
    whole = group_size in _GROUPS and shape[1] % (group_size or 1) == 0 and shape[0] % _TILE == 0
    if not (fits and whole and group_size):
        return dense_copy(dequantize, shape, dtype)

    def make() -> Product:
        weight = affine()
        assert weight is not None
        return _product(weight, group_size)

    nbytes = shape[0] * shape[1] // 2 + 4 * shape[0] * shape[1] // group_size
    return InferenceCopy("codes for torch's int4 kernel", nbytes, make)


def has_kernel() -> bool:
    """Whether torch has the kernel in vector instructions for this CPU; else it is slow."""
    found = hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu")
    return found and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def _product(weight: AffineWeight, group_size: int) -> Product:
    aten: Any = torch.ops.aten
    codes = weight.codes.to(torch.int32).contiguous()  # AWQ's are read transposed
    packed = aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    scales, zeros = weight.scales.float(), weight.zeros.float()
    both = torch.stack([scales.t(), ((8 - zeros) * scales).t()], -1)
    both = both.to(torch.bfloat16, memory_format=torch.contiguous_format)
    kernel = aten._weight_int4pack_mm_for_cpu
    return lambda x: kernel(x, packed, group_size, both)
