"""``x · Wᵀ`` by the processor's product of 8-bit integers, without rounding x to 8 bits.

Each row of x is written as two terms of 8 bits, and both are rows of one integer product:

    x ≈ (first + second / 254) · step        step = max |x| / 127

What is rounded off is at most ``step / 508``, 2^-16 of the row's largest input: less than bfloat16
rounds the product by. LLM.int8's own forward takes the first term alone. The sums are exact: int32
has room for 127² in rows of 133,000 inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

#: Steps of the second term in one of the first; its codes then end at 127.
_FINER = 254
#: From so many rows on it beats torch's kernel for bfloat16 times codes, whose time grows by row.
_LEAST_ROWS = 5


def takes(x: Tensor) -> bool:
    """Whether the rows of ``x`` (bfloat16, few) are to go this way on this processor."""
    return x.shape[0] >= _LEAST_ROWS and multiplies_int8()


def multiplies_int8() -> bool:
    """Whether the processor sums products of 8-bit integers in 32 bits (VNNI, AMX).

    Others would sum pairs in 16 bits, which overflow, or take a loop.
    """
    describe: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
    return bool(describe().get("avx512_vnni"))


def product(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """``x · (codes · scale)ᵀ`` in x's dtype; NaN in the rows that have a value beyond numbers.

    Args:
        x: ``(rows, in_features)``.
        codes: int8 ``(out_features, in_features)``.
        scale: float32 ``(out_features,)``.
    """
    wide = x.float()
    step = wide.abs().amax(1, keepdim=True) / 127
    scaled = wide / torch.where(step == 0, 1.0, step)
    first = scaled.round()
    second = scaled.sub_(first).mul_(_FINER).round_()
    sums = torch._int_mm(torch.cat([first, second]).to(torch.int8), codes.t())
    high, low = sums.float().chunk(2)
    y = high.add_(low, alpha=1 / _FINER).mul_(step).mul_(scale)
    return y.to(x.dtype)
