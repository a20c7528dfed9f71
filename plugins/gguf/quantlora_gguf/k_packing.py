"""Weights in blocks whose scales are packed too: Q2_K to Q6_K, IQ4_NL and IQ4_XS.

Of several ways to choose a block's scales the one is kept that brings its weights nearest: the
plain one of their range, a searched one, and those that the block has already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from quantlora_gguf import k_writing as write, scale_search as search
from quantlora_gguf.block_types import BLOCK_TYPES, BlockType
from quantlora_gguf.simple_blocks import IQ4_VALUES

#: Weights packed at a time.
_CHUNK = 1 << 18


@dataclass(frozen=True)
class KType:
    """How a type of blocks is written.

    Args:
        groups: of a block, each with a scale.
        values: what codes stand for before they are scaled, in ascending order.
        lowest, highest: of the groups' scales as integers; both 0 where there is one scale only.
        factor: the byte at which the factor of the scales stands.
        codes, scales: what writes them, of `k_writing`.
        low_factor: the byte of the factor of the minima; None where there are none.
    """

    groups: int
    values: tuple[int, ...]
    lowest: int
    highest: int
    factor: int
    codes: Callable[[Tensor, Tensor], None]
    scales: Callable[..., None] | None = None
    low_factor: int | None = None


K_TYPES = {
    "Q2_K": KType(16, tuple(range(4)), 0, 15, 80, write.q2_k_codes, write.q2_k_scales, 82),
    "Q3_K": KType(16, tuple(range(-4, 4)), -32, 31, 108, write.q3_k_codes, write.q3_k_scales),
    "Q4_K": KType(8, tuple(range(16)), 0, 63, 0, write.q4_k_codes, write.q4_k_scales, 2),
    "Q5_K": KType(8, tuple(range(32)), 0, 63, 0, write.q5_k_codes, write.q4_k_scales, 2),
    "Q6_K": KType(16, tuple(range(-32, 32)), -128, 127, 208, write.q6_k_codes, write.q6_k_scales),
    "IQ4_NL": KType(1, IQ4_VALUES, 0, 0, 0, write.iq4_nl_codes),
    "IQ4_XS": KType(8, IQ4_VALUES, -32, 31, 0, write.iq4_xs_codes, write.iq4_xs_scales),
}


def pack_k(weight: Tensor, name: str, like: Tensor | None = None) -> Tensor:
    """Weights ``(..., in_features)`` as bytes ``(..., row_bytes)``; ``name`` is of `K_TYPES`.

    Args:
        like: bytes of the same shape, whose scales are kept where they are the best.
    """
    kind = BLOCK_TYPES[name]
    shape = (*weight.shape[:-1], kind.row_bytes(weight.shape[-1]))
    out = torch.empty(shape, dtype=torch.uint8, device=weight.device).view(-1, kind.nbytes)
    rows = weight.reshape(-1, kind.elements)
    old = None if like is None else like.reshape(-1, kind.nbytes)
    step = _CHUNK // kind.elements
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        out[part] = _packed(rows[part].float(), kind, None if old is None else old[part])
    return out.view(shape)


def _packed(weights: Tensor, kind: BlockType, like: Tensor | None) -> Tensor:
    """Blocks ``(blocks, elements)`` as bytes ``(blocks, nbytes)``."""
    how = K_TYPES[kind.name]
    best, least = None, None
    for blocks in _headers(weights, kind, how, like):
        error = _write_codes(blocks, weights, kind, how)
        if best is None or least is None:
            best, least = blocks, error
            continue
        better = error < least
        best = torch.where(better[:, None], blocks, best)
        least = torch.where(better, error, least)
    assert best is not None
    return best


def _headers(weights: Tensor, kind: BlockType, how: KType, like: Tensor | None) -> Iterator[Tensor]:
    """Blocks with scales, without codes."""
    if like is not None:
        yield like.clone()
    largest = weights.abs().amax(-1, keepdim=True)
    size = torch.where(largest > 0, largest, 1.0)[..., None]
    groups = weights.view(len(weights), how.groups, -1) / size
    for fit in _fits(groups, how):
        scale, offset = (part * size for part in fit)
        yield _header(scale[..., 0], offset[..., 0], kind, how)


def _fits(groups: Tensor, how: KType) -> Iterator[search.Fit]:
    if how.low_factor is not None:
        yield search.plain_range(groups, how.values[-1])
        yield search.best_range(groups, how.values[-1])
        return
    values = _values(how, groups)
    yield search.plain_scale(groups, values)
    yield search.best_scale(groups, values)


def _header(scale: Tensor, offset: Tensor, kind: BlockType, how: KType) -> Tensor:
    """Blocks with these scales and offsets ``(blocks, groups)``, as far as integers can be them."""
    blocks = scale.new_zeros(len(scale), kind.nbytes, dtype=torch.uint8)
    if how.scales is None:
        write.put_half(blocks, how.factor, scale[:, 0])
        return blocks
    steps = _steps(blocks, how.factor, scale, how)
    lows = [] if how.low_factor is None else [_steps(blocks, how.low_factor, -offset, how)]
    how.scales(blocks, steps, *lows)
    return blocks


def _steps(blocks: Tensor, at: int, scale: Tensor, how: KType) -> Tensor:
    """Scales as integers from 0 on; their factor is put at byte ``at``."""
    extreme = scale.gather(1, scale.abs().argmax(1, keepdim=True))[:, 0]
    factor = write.put_half(blocks, at, extreme / (how.lowest or how.highest))
    steps = (scale * search.inverse(factor)[:, None]).round_()
    return (steps.clamp_(how.lowest, how.highest) - how.lowest).to(torch.uint8)


def _write_codes(blocks: Tensor, weights: Tensor, kind: BlockType, how: KType) -> Tensor:
    """Put each weight's nearest code into blocks with scales; the squared error ``(blocks,)``."""
    grid = kind.read(blocks)
    groups = weights.view(len(weights), how.groups, -1)
    shifted = groups if grid.offsets is None else groups - grid.offsets
    codes = search.nearest_code(shifted * search.inverse(grid.scales), _values(how, groups))
    how.codes(blocks, codes.to(torch.uint8).flatten(1))
    size = weights.abs().amax(-1).clamp(min=torch.finfo(torch.float32).tiny)
    return ((kind.read(blocks).weights() - weights) / size[:, None]).square().sum(-1)


def _values(how: KType, like: Tensor) -> Tensor:
    return torch.tensor(how.values, dtype=torch.float32, device=like.device)
