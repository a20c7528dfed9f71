"""Codes of 2, 3, 4 or 8 bits in int32 words, as GPTQ checkpoints store them.

Along the packed axis the words are one little-endian stream of bits. So a run of bytes is a run of
codes at every width, also at 3 bits, where eight codes share three bytes and straddle the words.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: The widths GPTQ checkpoints have.
BITS = (2, 3, 4, 8)


def unpack(words: Tensor, bits: int) -> Tensor:
    """int32 ``(..., n)`` to codes uint8 ``(..., n * 32 // bits)``."""
    units: Tensor = words.contiguous().view(torch.uint8)
    if bits == 8:
        return units
    if bits == 3:
        low, middle, high = _runs(units, 3).to(torch.int32).unbind(-1)
        units = low | middle << 8 | high << 16
    codes: Tensor = (units.unsqueeze(-1) >> _shifts(bits, units)) & (2**bits - 1)
    return codes.to(torch.uint8).flatten(-2)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes ``(..., n * 32 // bits)`` to int32 ``(..., n)``; the inverse of `unpack`."""
    parts = _runs(codes.to(torch.int32), 8 if bits == 3 else 8 // bits)
    units = (parts << _shifts(bits, parts)).sum(-1, dtype=torch.int32)
    if bits == 3:
        octets = torch.arange(0, 24, 8, dtype=torch.int32, device=codes.device)
        units = (units.unsqueeze(-1) >> octets).flatten(-2)
    words: Tensor = (units & 255).to(torch.uint8).contiguous().view(torch.int32)
    return words


def _runs(values: Tensor, length: int) -> Tensor:
    """``(..., n)`` as ``(..., n // length, length)``."""
    return values.reshape(*values.shape[:-1], -1, length)


def _shifts(bits: int, units: Tensor) -> Tensor:
    """Where the codes of one unit begin: a byte, or three of them at 3 bits."""
    width = 24 if bits == 3 else 8
    return torch.arange(0, width, bits, dtype=units.dtype, device=units.device)
