"""Round-to-nearest on GPTQ's grid: what merging, and quantizing without calibration, do.

For each group of inputs a scale and an integer zero-point; code = round(w / scale + zero).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """Scales and integer zero-points ``(out_features, groups)``, ``bits`` wide."""

    scales: Tensor
    zeros: Tensor
    bits: int

    def codes(self, weight: Tensor, index: Tensor) -> Tensor:
        """uint8 ``(out_features, in_features)``; ``index`` is the group of each input."""
        steps = weight / _nonzero(self.scales.float())[:, index] + self.zeros[:, index]
        return steps.round().clamp(0, 2**self.bits - 1).to(torch.uint8)

    def values(self, codes: Tensor, index: Tensor) -> Tensor:
        return (codes.float() - self.zeros[:, index]) * self.scales.float()[:, index]

    def errors(self, weight: Tensor, index: Tensor) -> Tensor:
        """Squared error of each group, ``(out_features, groups)``."""
        wrong = (self.values(self.codes(weight, index), index) - weight).square()
        return torch.zeros_like(self.scales, dtype=wrong.dtype).index_add_(1, index, wrong)

    def moved(self, weight: Tensor, codes: Tensor, index: Tensor) -> Grid:
        """The zero-points that leave ``codes`` as near to ``weight`` as whole steps can."""
        steps = codes.float() - weight / _nonzero(self.scales.float())[:, index]
        sums = torch.zeros_like(self.zeros).index_add_(1, index, steps)
        sizes = torch.bincount(index, minlength=sums.shape[1]).clamp(min=1)
        return replace(self, zeros=(sums / sizes).round().clamp(1, 2**self.bits - 1))

    def where(self, better: Tensor, other: Grid) -> Grid:
        """This grid where ``better``, else ``other``."""
        scales = torch.where(better, self.scales, other.scales)
        return Grid(scales, torch.where(better, self.zeros, other.zeros), self.bits)


def best(grids: Sequence[Grid], weight: Tensor, index: Tensor) -> Grid:
    """For each group the grid that errs least; the first one of several."""
    found, *others = grids
    for grid in others:
        found = found.where(found.errors(weight, index) <= grid.errors(weight, index), grid)
    return found


def fit(
    weight: Tensor, index: Tensor, groups: int, bits: int, sym: bool, dtype: torch.dtype
) -> Grid:
    """The grid that spans each group's values.

    Zero-points are at least 1: stored less one, as v1 checkpoints do, a 0 would not survive.

    Args:
        weight: float32 ``(out_features, in_features)``.
        index: the group of each input, ``(in_features,)``.
        sym: the zero-point is the middle of the range.
        dtype: that of the scales; they are rounded to it before any code is chosen.
    """
    low, high = _extreme(weight, index, groups, "amin"), _extreme(weight, index, groups, "amax")
    levels = 2**bits - 1
    if sym:
        scales = 2 * torch.maximum(high, -low) / levels
        zeros = torch.full_like(scales, (levels + 1) // 2)
    else:
        scales = (high - low) / (levels - 1)  # zero-points start at 1: one level less
        zeros = (-low / _nonzero(scales)).round().clamp(1, levels)
    scales = _nonzero(scales.to(dtype))
    return Grid(scales, zeros, bits)


def _extreme(weight: Tensor, index: Tensor, groups: int, reduce: str) -> Tensor:
    """The least or largest value of each group, 0 among them, ``(out_features, groups)``."""
    start = weight.new_zeros(weight.shape[0], groups)
    return start.scatter_reduce(1, index.expand_as(weight), weight, reduce)


def _nonzero(scales: Tensor) -> Tensor:
    """A group of zeros has any scale; not 0, which cannot be divided by."""
    return torch.where(scales == 0, torch.ones_like(scales), scales)
