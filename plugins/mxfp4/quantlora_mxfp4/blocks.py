"""MXFP4: 32 neighbours along a row share a power of two, each is a float of 4 bits.

OCP Microscaling Formats 1.0: codes are E2M1 (a sign, then 0, 0.5, 1, 1.5, 2, 3, 4, 6), scales E8M0
(2^(byte - 127); 255 is NaN). Both are uint8 and laid out as in the files of gpt-oss: ``blocks``
``(..., groups, 16)``, the first of two neighbours in the low half of a byte, and ``scales``
``(..., groups)``.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Weights that share a scale.
BLOCK = 32
#: What codes 0 to 7 stand for; 8 to 15 are the same with a minus.
MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
#: What is taken off the byte of a scale; the largest byte with which 6 is a float32.
BIAS, LARGEST = 127, 252
#: The byte that is no number.
_NAN = 255
#: The exponent of the largest magnitude, 6.
_TOP = 2
#: Groups that are unpacked or packed at a time: the temporaries stay in the cache.
_CHUNK = 1 << 14


def unpack(blocks: Tensor, scales: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weights ``(..., in_features)``, rounded to ``dtype`` once."""
    work = dtype if dtype in (torch.float32, torch.bfloat16) else torch.float32
    pairs, powers = _pairs(blocks.device, work), _powers(blocks.device, work)
    rows, steps = blocks.reshape(-1, BLOCK // 2), scales.reshape(-1, 1)
    out = torch.empty(len(rows), BLOCK, dtype=dtype, device=blocks.device)
    for start in range(0, len(rows), _CHUNK):
        part = slice(start, start + _CHUNK)
        out[part] = pairs[rows[part].int()].flatten(1) * powers[steps[part].int()]
    return out.view(*scales.shape[:-1], -1)


def pack(weight: Tensor, like: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``blocks`` and ``scales`` of weights ``(..., in_features)``, a multiple of 32.

    Of two powers of two that the largest weight of a block suggests the one with the smaller
    squared error is taken; 6 is the end of the range for both.

    Args:
        like: scales of the same shape that are kept where they do as well.
    """
    groups = torch.unflatten(weight, -1, (-1, BLOCK))
    shape = groups.shape[:-1]
    groups, old = groups.reshape(-1, BLOCK), None if like is None else like.reshape(-1)
    blocks = torch.empty(len(groups), BLOCK // 2, dtype=torch.uint8, device=weight.device)
    scales = torch.empty(len(groups), dtype=torch.uint8, device=weight.device)
    for start in range(0, len(groups), _CHUNK):
        part = slice(start, start + _CHUNK)
        given = None if old is None else old[part]
        blocks[part], scales[part] = _packed(groups[part].float(), given)
    return blocks.view(*shape, BLOCK // 2), scales.view(shape)


def _packed(groups: Tensor, like: Tensor | None) -> tuple[Tensor, Tensor]:
    largest = groups.abs().amax(-1)
    exponent = torch.frexp(largest).exponent.int() - 1  # 0 for an empty block
    lower = (exponent - _TOP + BIAS).clamp(0, LARGEST).to(torch.uint8)
    tried = [lower, (lower + 1).clamp(max=LARGEST)]
    tried = tried if like is None else [torch.where(like > LARGEST, lower, like), *tried]
    best, least = tried[0], _error(groups, tried[0])
    for scales in tried[1:]:
        error = _error(groups, scales)
        best = torch.where(error < least, scales, best)
        least = torch.minimum(error, least)
    codes = _codes(groups, best)
    return codes[:, 0::2] | (codes[:, 1::2] << 4), best


def _codes(groups: Tensor, scales: Tensor) -> Tensor:
    """The nearest code of each weight, to an even one from halfway, uint8 ``(groups, 32)``."""
    values = torch.tensor(MAGNITUDES, device=groups.device)
    halfway = (values[1:] + values[:-1]) / 2
    scaled = torch.ldexp(groups.abs(), (BIAS - scales.int())[:, None])
    below, above = torch.bucketize(scaled, halfway), torch.bucketize(scaled, halfway, right=True)
    code = torch.where(below % 2 == 0, below, above)
    return (code + 8 * torch.signbit(groups)).to(torch.uint8)


def _error(groups: Tensor, scales: Tensor) -> Tensor:
    """The squared error of each group, in its own scale: large and small ones do not overflow."""
    values = torch.tensor(MAGNITUDES, device=groups.device)
    code = _codes(groups, scales).long() & 7
    largest = groups.abs().amax(-1, keepdim=True)
    found = torch.ldexp(values[code], scales.int()[:, None] - BIAS)
    return ((found - groups.abs()) / torch.where(largest > 0, largest, 1.0)).square().sum(-1)


def _pairs(device: torch.device, dtype: torch.dtype) -> Tensor:
    """``(256, 2)``: what the halves of a byte stand for, the low one first."""
    values = torch.tensor([*MAGNITUDES, *(-value for value in MAGNITUDES)], device=device)
    byte = torch.arange(256, device=device)
    return values[torch.stack([byte & 15, byte >> 4], dim=1)].to(dtype)


def _powers(device: torch.device, dtype: torch.dtype) -> Tensor:
    """``(256,)``: what scales stand for."""
    byte = torch.arange(256, device=device)
    powers = torch.ldexp(torch.ones(256, device=device), byte - BIAS)
    return torch.where(byte == _NAN, torch.nan, powers).to(dtype)
