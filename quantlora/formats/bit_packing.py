"""Codes of 1 to 8 bits in larger words, as packed formats store them.

Along the last dimension the words are one little-endian stream of bits with nothing in between. So
a run of bytes is a run of codes at every width, also where codes straddle the words.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def unpack_bits(words: Tensor, bits: int, count: int | None = None) -> Tensor:
    """Integer words ``(..., n)`` to codes uint8 ``(..., count)``; by default all that fit in."""
    octets: Tensor = words.contiguous().view(torch.uint8)
    count = octets.shape[-1] * 8 // bits if count is None else count
    width = _bytes_in_unit(bits)
    if width > 1:
        octets = F.pad(octets, (0, -octets.shape[-1] % width))
        parts = torch.unflatten(octets, -1, (-1, width)).to(_wide(width))
        octets = (parts << _shifts(8, width, parts)).sum(-1, dtype=parts.dtype)
    codes: Tensor = (octets.unsqueeze(-1) >> _shifts(bits, width * 8 // bits, octets)) & (
        2**bits - 1
    )
    return codes.to(torch.uint8).flatten(-2)[..., :count]


def pack_bits(codes: Tensor, bits: int, dtype: torch.dtype = torch.int32) -> Tensor:
    """Codes ``(..., n)``, each below ``2 ** bits``, to words of ``dtype``; the inverse.

    The last word is filled up with zeros.
    """
    width, size = _bytes_in_unit(bits), dtype.itemsize
    octets = -(-codes.shape[-1] * bits // (8 * size)) * size
    run = width * 8 // bits
    padded = F.pad(codes, (0, -codes.shape[-1] % run))
    parts = torch.unflatten(padded, -1, (-1, run)).to(_wide(width))
    units = (parts << _shifts(bits, run, parts)).sum(-1, dtype=parts.dtype)
    stream = (units.unsqueeze(-1) >> _shifts(8, width, units)).flatten(-2) & 255
    stream = F.pad(stream, (0, max(octets - stream.shape[-1], 0)))[..., :octets]
    words: Tensor = stream.to(torch.uint8).reshape(-1).view(dtype)
    return words.view(*codes.shape[:-1], octets // size)


def _bytes_in_unit(bits: int) -> int:
    """The fewest bytes that hold a whole number of codes."""
    return bits // math.gcd(bits, 8)


def _wide(width: int) -> torch.dtype:
    return torch.int32 if width <= 3 else torch.int64


def _shifts(step: int, count: int, units: Tensor) -> Tensor:
    """Where the ``count`` parts of a unit begin."""
    return torch.arange(0, step * count, step, dtype=units.dtype, device=units.device)
