"""Scales and offsets of groups of weights: several are tried, each fitted by least squares.

The manner is that of llama.cpp (``make_qx_quants``, ``make_qkx2_quants``): a step somewhat smaller
or larger than the range asks for gives codes, the scale that suits those codes best is
computed, and the try with the smallest squared error is kept.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: Steps tried: the range is spread over so many codes more or fewer than there are.
_TRIES = tuple(step / 10 for step in range(-10, 11))

Fit = tuple[Tensor, Tensor]


def plain_range(x: Tensor, top: int) -> Fit:
    """Scale and offset ``(..., 1)`` that put the smallest weight on code 0, the largest on ``top``.

    Args:
        x: groups of weights ``(..., size)``. Offsets are at most 0.
    """
    low = x.amin(-1, keepdim=True).clamp(max=0)
    return (x.amax(-1, keepdim=True) - low).clamp(min=0) / top, low


def best_range(x: Tensor, top: int) -> Fit:
    """As `plain_range`, with a smaller squared error."""
    scale, low = plain_range(x, top)
    spread = scale * top

    def tried(step: float) -> Fit:
        wide = torch.where(spread > 0, (top + step) / spread, 0.0)
        return _line(x, ((x - low) * wide).round_().clamp_(0, top))

    return _best(x, (scale, low), tried, lambda y: y.round_().clamp_(0, top))


def plain_scale(x: Tensor, values: Tensor) -> Fit:
    """The scale ``(..., 1)`` that puts the largest weight, of either sign, on ``values[0]``."""
    at = x.abs().argmax(-1, keepdim=True)
    scale = x.gather(-1, at) / values[0]
    return scale, torch.zeros_like(scale)


def best_scale(x: Tensor, values: Tensor) -> Fit:
    """As `plain_scale`, with a smaller squared error.

    Args:
        values: what codes stand for, in ascending order; the first has the largest magnitude.
    """
    scale, none = plain_scale(x, values)
    width = float(values[1] - values[0])

    def tried(step: float) -> Fit:
        codes = nearest_value(x * inverse(scale) * (1 - step * width / values[0]), values)
        return (codes * x).sum(-1, keepdim=True) * inverse(codes.square().sum(-1, True)), none

    return _best(x, (scale, none), tried, lambda y: nearest_value(y, values))


def nearest_value(x: Tensor, values: Tensor) -> Tensor:
    """The element of ``values``, ascending, that is nearest to each of ``x``."""
    if _are_neighbours(values):
        return x.round().clamp_(float(values[0]), float(values[-1]))
    return values[nearest_code(x, values)]


def nearest_code(x: Tensor, values: Tensor) -> Tensor:
    """Its place in ``values``."""
    if _are_neighbours(values):
        return nearest_value(x, values) - values[0]
    return torch.bucketize(x, (values[1:] + values[:-1]) / 2)


def _are_neighbours(values: Tensor) -> bool:
    """Whether they are integers one after the other: then rounding does, and is faster."""
    return float(values[-1] - values[0]) == len(values) - 1


def inverse(scale: Tensor) -> Tensor:
    """``1 / scale``; 0 where the scale is 0, or so small that it has no inverse."""
    return torch.where(scale == 0, 0.0, 1 / scale).nan_to_num(posinf=0.0, neginf=0.0)


def _line(x: Tensor, codes: Tensor) -> Fit:
    """The scale and the offset, at most 0, that bring ``codes`` nearest to ``x``."""
    size = x.shape[-1]
    means, middle = codes.mean(-1, True), x.mean(-1, True)
    squares = codes.square().sum(-1, True)
    product = (codes * x).sum(-1, True)
    scale = (product - size * means * middle) * inverse(squares - size * means.square())
    offset = middle - scale * means
    return (
        torch.where(offset > 0, product * inverse(squares), scale),
        offset.clamp(max=0),
    )


def _best(
    x: Tensor, first: Fit, tried: Callable[[float], Fit], rounded: Callable[[Tensor], Tensor]
) -> Fit:
    """Of ``first`` and each that is tried the one whose rounded weights are nearest to ``x``."""
    found, least = first, _error(x, first, rounded)
    for step in _TRIES:
        fit = tried(step)
        error = _error(x, fit, rounded)
        better = error < least
        least = torch.where(better, error, least)
        scale, offset = (torch.where(better, new, old) for new, old in zip(fit, found, strict=True))
        found = scale, offset
    return found


def _error(x: Tensor, fit: Fit, rounded: Callable[[Tensor], Tensor]) -> Tensor:
    scale, offset = fit
    codes = rounded((x - offset) * inverse(scale))
    return (codes * scale + offset - x).square().sum(-1, keepdim=True)
