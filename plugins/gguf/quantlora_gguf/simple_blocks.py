"""Blocks of 32 weights with one scale: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, MXFP4; and halves.

The layouts are those of ``ggml-common.h`` and ``ggml-quants.c`` of llama.cpp (``block_q4_0`` and so
on). ``blocks`` is uint8 ``(blocks, bytes of a block)`` throughout.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantlora_gguf.grid import Grid, half, nibbles, shifted

#: What a 4-bit code of IQ4_NL and IQ4_XS stands for (``kvalues_iq4nl``).
IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
#: E2M1 doubled, as the scale is halved (``kvalues_mxfp4``).
MXFP4_VALUES = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


def q4_0(blocks: Tensor) -> Grid:
    return Grid(_four(blocks[:, 2:]) - 8, half(blocks, 0)[:, None])


def q4_1(blocks: Tensor) -> Grid:
    return Grid(_four(blocks[:, 4:]), half(blocks, 0)[:, None], half(blocks, 2)[:, None])


def q5_0(blocks: Tensor) -> Grid:
    return Grid(_five(blocks[:, 2:]) - 16, half(blocks, 0)[:, None])


def q5_1(blocks: Tensor) -> Grid:
    return Grid(_five(blocks[:, 4:]), half(blocks, 0)[:, None], half(blocks, 2)[:, None])


def q8_0(blocks: Tensor) -> Grid:
    return Grid(blocks[:, None, 2:].view(torch.int8), half(blocks, 0)[:, None])


def iq4_nl(blocks: Tensor) -> Grid:
    return Grid(look_up(_four(blocks[:, 2:]), IQ4_VALUES), half(blocks, 0)[:, None])


def mxfp4(blocks: Tensor) -> Grid:
    """One byte of exponent: 2^(e - 128), half of E8M0's value; 0 and 1 are denormal."""
    exponent = blocks[:, :1].int()
    bits = torch.where(exponent < 2, 0x00200000 << exponent.clamp(max=1), (exponent - 1) << 23)
    return Grid(look_up(_four(blocks[:, 1:]), MXFP4_VALUES), bits.view(torch.float32)[:, None])


def f16(blocks: Tensor) -> Grid:
    return _plain(blocks, torch.float16)


def bf16(blocks: Tensor) -> Grid:
    return _plain(blocks, torch.bfloat16)


def look_up(codes: Tensor, values: tuple[int, ...]) -> Tensor:
    """``values[code]`` as int8."""
    return torch.tensor(values, dtype=torch.int8, device=codes.device)[codes.int()]


def _plain(blocks: Tensor, dtype: torch.dtype) -> Grid:
    scales = torch.ones(1, 1, 1, device=blocks.device)
    return Grid(blocks.contiguous().view(dtype)[:, None], scales)


def _four(packed: Tensor) -> Tensor:
    """32 codes of 4 bits as int8 ``(blocks, 1, 32)``."""
    return nibbles(packed).flatten(1)[:, None].view(torch.int8)


def _five(packed: Tensor) -> Tensor:
    """32 codes of 5 bits: 4 bytes with the highest bits, then the other four."""
    fifth = shifted(packed[:, :4, None], 1).flatten(1)
    return _four(packed[:, 4:]) | (fifth << 4)[:, None].view(torch.int8)
