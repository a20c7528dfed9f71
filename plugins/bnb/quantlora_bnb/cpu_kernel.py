"""bitsandbytes' 4-bit product on a CPU with AVX512-BF16, on a copy of the codes in its layout.

Upstream repacks a layer's weight in place for it (`cpu_layout` says what follows); the copy here
leaves the layer alone. The layout, for 32 rows n of a block and a pair of columns k, is 32 bytes:

    byte 2n + j  =  code[n + 16, 2k + j] << 4 | code[n, 2k + j]        n < 16, j < 2

Scales are ``(blocks of a row, rows)`` in bfloat16, as the kernel takes them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quantlora import InferenceCopy
from quantlora_bnb.library import library

#: Rows of the weight that lie together in the layout.
_BLOCK = 32


def has_kernel(state: Any) -> bool:
    """Whether upstream would take its kernel for such a weight, on this machine."""
    functional = library().functional
    if not getattr(functional, "has_avx512bf16", bool)():
        return False
    rows, columns = state.shape
    return bool(rows % _BLOCK == 0 and columns % state.blocksize == 0)


def cpu_copy(codes: Tensor, absmax: Tensor, state: Any) -> InferenceCopy:
    """The copy of a weight for `has_kernel`.

    Args:
        codes: uint8 ``(rows · columns / 2, 1)``.
        absmax: float32 ``(blocks,)``.
    """
    shape, blocksize, levels = tuple(state.shape), state.blocksize, state.code

    def make() -> Any:
        packed, scales = repack(codes, shape), rounded(absmax, shape[0])
        kernel = upstreams_kernel()
        return lambda x: kernel(x, packed, shape, scales, levels, blocksize)

    nbytes = codes.numel() + 2 * absmax.numel()
    return InferenceCopy("the CPU layout of bitsandbytes", nbytes, make)


def upstreams_kernel() -> Any:
    """``(x, packed, shape, scales, levels, blocksize)`` to ``x · Wᵀ``."""
    return torch.ops.bitsandbytes.gemv_4bit.default


def repack(codes: Tensor, shape: tuple[int, int]) -> Tensor:
    """Codes ``(rows, columns / 2)`` in the layout above."""
    rows, pairs = shape[0], shape[1] // 2
    low, high = codes.view(rows // _BLOCK, 2, _BLOCK // 2, pairs).unbind(1)
    both = torch.stack([(high & 0xF0) | (low >> 4), (high << 4) | (low & 0x0F)], -1)
    return both.transpose(1, 2).reshape(rows, pairs)


def rounded(absmax: Tensor, rows: int) -> Tensor:
    """Scales ``(blocks of a row, rows)`` in bfloat16."""
    return absmax.view(rows, -1).t().to(torch.bfloat16, memory_format=torch.contiguous_format)
