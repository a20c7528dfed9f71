"""Rounding a float weight to a grid with integer zero-points: merging, and packing without data.

For each group of inputs a scale and a zero-point; code = round(w / scale + zero).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quantlora.formats.affine import AffineWeight


def fit_affine(
    weight: Tensor,
    bits: int,
    group_size: int,
    *,
    group_index: Tensor | None = None,
    sym: bool = False,
    dtype: torch.dtype = torch.float16,
    lowest_zero: int = 0,
) -> AffineWeight:
    """``weight`` ``(out_features, in_features)`` on the grid that spans each group's values.

    Args:
        group_size: inputs in a group; -1 is all of them.
        group_index: the group of each input ``(in_features,)``; None: groups are neighbours.
        sym: the zero-point is the middle of the range.
        dtype: that of the scales; they are rounded to it before any code is chosen.
        lowest_zero: 1 for formats that store zero-points less one, where a 0 would not survive.
    """
    weight = weight.detach().float()
    size = weight.shape[1] if group_size == -1 else group_size
    index = _index(weight, size, group_index)
    groups = -(-weight.shape[1] // size) if group_index is None else int(index.max()) + 1
    grid = _fit(weight, index, groups, bits, sym, dtype, lowest_zero)
    return grid.affine(weight, index, size, group_index)


def refit_affine(weight: Tensor, like: AffineWeight, *, lowest_zero: int = 0) -> AffineWeight:
    """``weight`` on a grid of ``like``'s kind: bits, groups and dtype of the scales.

    Each group keeps ``like``'s scale, its zero-point moved by whole steps (which holds QA-LoRA's
    updates, rounded), or gets a new grid where that errs less. ``like`` itself loses nothing.
    """
    weight, like = weight.detach().float(), like.by_row()
    index = _index(weight, like.group_size, like.group_index)
    old = _Grid(like.scales, like.zeros.float(), like.bits)
    sym = bool((old.zeros == 2 ** (like.bits - 1)).all())
    moved = old.moved(weight, like.codes, index, lowest_zero)
    groups, dtype = old.scales.shape[1], old.scales.dtype
    new = _fit(weight, index, groups, like.bits, sym, dtype, lowest_zero)
    grid = _best([old, moved, new], weight, index)
    return grid.affine(weight, index, like.group_size, like.group_index)


@dataclass(frozen=True)
class _Grid:
    """Scales and integer zero-points ``(out_features, groups)``, ``bits`` wide."""

    scales: Tensor
    zeros: Tensor
    bits: int

    def affine(
        self, weight: Tensor, index: Tensor, group_size: int, group_index: Tensor | None
    ) -> AffineWeight:
        codes = self.codes(weight, index)
        return AffineWeight(codes, self.scales, self.zeros, self.bits, group_size, group_index)

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

    def moved(self, weight: Tensor, codes: Tensor, index: Tensor, lowest_zero: int) -> _Grid:
        """The zero-points that leave ``codes`` as near to ``weight`` as whole steps can."""
        steps = codes.float() - weight / _nonzero(self.scales.float())[:, index]
        sums = torch.zeros_like(self.zeros).index_add_(1, index, steps)
        sizes = torch.bincount(index, minlength=sums.shape[1]).clamp(min=1)
        zeros = (sums / sizes).round().clamp(lowest_zero, 2**self.bits - 1)
        return replace(self, zeros=zeros)

    def where(self, better: Tensor, other: _Grid) -> _Grid:
        """This grid where ``better``, else ``other``."""
        scales = torch.where(better, self.scales, other.scales)
        return _Grid(scales, torch.where(better, self.zeros, other.zeros), self.bits)


def _best(grids: Sequence[_Grid], weight: Tensor, index: Tensor) -> _Grid:
    """For each group the grid that errs least; the first one of several."""
    found, *others = grids
    for grid in others:
        found = found.where(found.errors(weight, index) <= grid.errors(weight, index), grid)
    return found


def _fit(
    weight: Tensor,
    index: Tensor,
    groups: int,
    bits: int,
    sym: bool,
    dtype: torch.dtype,
    lowest_zero: int,
) -> _Grid:
    low, high = _extreme(weight, index, groups, "amin"), _extreme(weight, index, groups, "amax")
    levels = 2**bits - 1
    if sym:
        scales = 2 * torch.maximum(high, -low) / levels
        zeros = torch.full_like(scales, (levels + 1) // 2)
    else:
        scales = (high - low) / (levels - lowest_zero)
        zeros = (-low / _nonzero(scales)).round().clamp(lowest_zero, levels)
    return _Grid(_nonzero(scales.to(dtype)), zeros, bits)


def _index(weight: Tensor, group_size: int, group_index: Tensor | None) -> Tensor:
    if group_index is not None:
        return group_index.to(weight.device)
    return torch.arange(weight.shape[1], device=weight.device) // group_size


def _extreme(weight: Tensor, index: Tensor, groups: int, reduce: str) -> Tensor:
    """The least or largest value of each group, 0 among them, ``(out_features, groups)``."""
    start = weight.new_zeros(weight.shape[0], groups)
    return start.scatter_reduce(1, index.expand_as(weight), weight, reduce)


def _nonzero(scales: Tensor) -> Tensor:
    """A group of zeros has any scale; not 0, which cannot be divided by."""
    return torch.where(scales == 0, torch.ones_like(scales), scales)
