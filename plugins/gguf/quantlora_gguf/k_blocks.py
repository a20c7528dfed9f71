"""Super-blocks of 256 weights: Q2_K to Q6_K and IQ4_XS, whose groups' scales are packed as well.

The layouts are those of ``ggml-common.h`` and ``ggml-quants.c`` of llama.cpp (``block_q2_K`` and so
on). ``blocks`` is uint8 ``(blocks, bytes of a block)`` throughout.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantlora_gguf.grid import Grid, half, nibbles, shifted
from quantlora_gguf.simple_blocks import IQ4_VALUES, look_up


def q2_k(blocks: Tensor) -> Grid:
    """16 bytes of scale and minimum, 64 of codes, the two factors of those."""
    steps, lows = blocks[:, :16] & 15, blocks[:, :16] >> 4
    codes = shifted(torch.unflatten(blocks[:, 16:80], 1, (2, 32)), 2)
    return _grid(codes, 16, half(blocks, 80), steps, half(blocks, 82), lows)


def q3_k(blocks: Tensor) -> Grid:
    """32 bytes of third bits, which count downwards, 64 of codes, 12 of scales, their factor."""
    third = shifted(blocks[:, None, :32], 1).flatten(1) ^ 1
    low = shifted(torch.unflatten(blocks[:, 32:96], 1, (2, 32)), 2).flatten(1)
    codes = low.view(torch.int8) - (third << 2).view(torch.int8)
    return _grid(codes, 16, half(blocks, 108), _q3_scales(blocks[:, 96:108]))


def q4_k(blocks: Tensor) -> Grid:
    """Two factors, 12 bytes of scales and minima, 128 of codes."""
    steps, lows = _six_bits(blocks[:, 4:16])
    codes = nibbles(torch.unflatten(blocks[:, 16:], 1, (4, 32)))
    return _grid(codes, 32, half(blocks, 0), steps, half(blocks, 2), lows)


def q5_k(blocks: Tensor) -> Grid:
    """As Q4_K, with 32 bytes of fifth bits before the codes."""
    steps, lows = _six_bits(blocks[:, 4:16])
    fifth = shifted(blocks[:, None, 16:48], 1).flatten(1)
    codes = nibbles(torch.unflatten(blocks[:, 48:], 1, (4, 32))).flatten(1) | (fifth << 4)
    return _grid(codes, 32, half(blocks, 0), steps, half(blocks, 2), lows)


def q6_k(blocks: Tensor) -> Grid:
    """128 bytes of low halves, 64 of high bits, 16 scales in int8, their factor."""
    low = nibbles(torch.unflatten(blocks[:, :128], 1, (2, 64))).flatten(1)
    high = shifted(torch.unflatten(blocks[:, 128:192], 1, (2, 32)), 2).flatten(1)
    codes = (low | (high << 4)).view(torch.int8) - 32
    return _grid(codes, 16, half(blocks, 208), blocks[:, 192:208].view(torch.int8))


def iq4_xs(blocks: Tensor) -> Grid:
    """A factor, 2 bytes of high and 4 of low bits of 8 scales, 128 bytes of codes."""
    high = shifted(blocks[:, 2:4, None], 2).flatten(1)
    low = nibbles(blocks[:, 4:8, None]).flatten(1)
    scales = (low | (high << 4)).view(torch.int8) - 32
    codes = nibbles(torch.unflatten(blocks[:, 8:], 1, (8, 16))).flatten(1)
    return _grid(look_up(codes, IQ4_VALUES), 32, half(blocks, 0), scales)


def _grid(
    codes: Tensor,
    size: int,
    factor: Tensor,
    steps: Tensor,
    low_factor: Tensor | None = None,
    lows: Tensor | None = None,
) -> Grid:
    """Groups of ``size`` codes; their scales are ``factor * steps``."""
    codes = codes.reshape(len(codes), -1, size)
    scales = (factor * steps)[..., None]
    if low_factor is None or lows is None:
        return Grid(codes, scales)
    return Grid(codes, scales, -(low_factor * lows)[..., None])


def _six_bits(packed: Tensor) -> tuple[Tensor, Tensor]:
    """8 scales and 8 minima of 6 bits: 4 and 4 whole, the rest in halves and in spare bits."""
    first, second, rest = torch.unflatten(packed, 1, (3, 4)).unbind(1)
    steps = torch.cat([first & 63, (rest & 15) | ((first >> 2) & 48)], dim=1)
    lows = torch.cat([second & 63, (rest >> 4) | ((second >> 2) & 48)], dim=1)
    return steps, lows


def _q3_scales(packed: Tensor) -> Tensor:
    """16 scales of 6 bits: 8 bytes of low halves, 4 of high bits."""
    low = nibbles(packed[:, :8]).flatten(1)
    high = shifted(packed[:, 8:], 2).flatten(1)
    return (low | (high << 4)).view(torch.int8) - 32
