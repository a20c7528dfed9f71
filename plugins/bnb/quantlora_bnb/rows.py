"""Rows of a weight as 8-bit codes, whatever their size."""

from __future__ import annotations

import torch
from torch import Tensor

from quantlora_bnb.library import library

#: Largest magnitudes of a row between which float16 holds what 8 bits tell apart.
_HALF = (2.0**-6, 65504.0)


def packed_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int8 ``(out, in)`` and the largest magnitude of each row, ``(out,)`` in float32.

    Upstream packs from float16, which has no room for 1e5 and hardly a bit for 1e-7: such rows
    are brought to its range by a power of two.
    """
    quant = library().functional.int8_vectorwise_quant
    low, high = weight.aminmax(dim=1)
    largest = torch.maximum(-low, high).float()
    outside = (largest > _HALF[1]) | ((largest < _HALF[0]) & (largest > 0))
    if not outside.any():
        codes, scale, _ = quant(weight.half())
        return codes, scale
    exponent = torch.where(outside, largest.frexp().exponent, 0)[:, None]
    codes, scale, _ = quant(_times_two_to(weight.float(), -exponent).half())
    return codes, _times_two_to(scale[:, None].float(), exponent)[:, 0]


def _times_two_to(x: Tensor, exponent: Tensor) -> Tensor:
    """Exact; in two steps, since one factor alone may be infinite."""
    half = exponent.div(2, rounding_mode="floor")
    return x.ldexp(half).ldexp(exponent - half)
