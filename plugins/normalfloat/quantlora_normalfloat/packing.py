"""Codes of 2, 3, 4 or 8 bits as a stream of bytes, little end first, with nothing in between.

Unpacking is one table look-up per word of several codes, not one per code: a byte, or 12 bits,
picks a row with the levels of all its codes at once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from quantlora import look_up as rows_of

#: Codes in a word, by bits. A word is a byte; for 3 bits half of 3 bytes.
_CODES_PER_WORD = {2: 4, 3: 4, 4: 2, 8: 1}
#: The stream is filled up to whole groups of so many codes.
_ALIGN = 8


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that ``count`` codes take."""
    return -(-count // _ALIGN) * bits


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes (uint8, any shape, each below ``2 ** bits``) as a flat uint8 stream."""
    flat = F.pad(codes.reshape(-1), (0, -codes.numel() % _ALIGN))
    rows = flat.view(-1, _CODES_PER_WORD[bits])
    word = rows[:, 0].to(torch.int32)
    for position in range(1, rows.shape[1]):
        word |= rows[:, position].to(torch.int32) << (bits * position)
    return _bytes(word, bits)


def look_up(stream: Tensor, levels: Tensor, count: int) -> Tensor:
    """``levels[code]`` for the first ``count`` codes; ``levels`` is ``(2 ** bits,)``."""
    bits = levels.numel().bit_length() - 1
    per_word = _CODES_PER_WORD[bits]
    rows = torch.cartesian_prod(*[levels] * per_word).view(-1, per_word).flip(1)
    return rows_of(_words(stream, bits), rows.contiguous())[:count]


def unpack(stream: Tensor, bits: int, count: int) -> Tensor:
    """The first ``count`` codes of ``stream`` as uint8."""
    levels = torch.arange(2**bits, dtype=torch.float32, device=stream.device)
    return look_up(stream, levels, count).to(torch.uint8)


def _bytes(word: Tensor, bits: int) -> Tensor:
    if bits != 3:
        return word.to(torch.uint8)
    word = word[0::2] | word[1::2] << 12
    return torch.stack([word & 255, (word >> 8) & 255, word >> 16], 1).to(torch.uint8).view(-1)


def _words(stream: Tensor, bits: int) -> Tensor:
    if bits != 3:
        return stream.int()
    three = stream.view(-1, 3).int()
    low = three[:, 0] | (three[:, 1] & 15) << 8
    high = three[:, 1] >> 4 | three[:, 2] << 4
    return torch.stack([low, high], 1).view(-1)
