"""Weights on a uniform grid: codes, and a scale and a zero-point for each group or block of them.

Most formats of integer codes are of this kind. A quantizer that shows its layers so
(`Quantizer.affine`) can be merged with QA-LoRA exactly; one that can hold a float zero-point
(`Quantizer.from_affine`) can hold the result.

`spread` and `spread_blocks` are for every format with such scales, on a grid or not (float8).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quantlora.errors import BackendError


@dataclass(frozen=True)
class AffineWeight:
    """``W[o, i] = (codes[o, i] - zeros[h(o), g(i)]) * scales[h(o), g(i)]``.

    Most formats have a scale for each row and group of inputs: ``h(o) = o``. With groups of
    outputs too a scale is for a block; with ``group_size=1`` groups go along the other axis.

    Args:
        codes: uint8 ``(out_features, in_features)``, each below ``2 ** bits``.
        scales, zeros: float ``(out groups, groups)``; ``(out_features, groups)`` by default.
        bits: 2, 3, 4 or 8.
        group_size: inputs in a group.
        group_index: the group of each input ``(in_features,)``; None when groups are neighbours.
        out_group_size: outputs in a group.
        out_group_index: the group of each output ``(out_features,)``; None as above.

    Raises:
        BackendError: scales and zeros are not of that shape.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    bits: int
    group_size: int
    group_index: Tensor | None = None
    out_group_size: int = 1
    out_group_index: Tensor | None = None

    def __post_init__(self) -> None:
        out_features, in_features = self.codes.shape
        for name, grouped in (("scales", self.scales), ("zeros", self.zeros)):
            rows, columns = grouped.shape
            fits = _fits(rows, out_features, self.out_group_size, self.out_group_index)
            if not (fits and _fits(columns, in_features, self.group_size, self.group_index)):
                raise BackendError(
                    f"AffineWeight: {name} are {rows} x {columns}, which are not the groups of "
                    f"{self.out_group_size} outputs and {self.group_size} inputs of codes "
                    f"{out_features} x {in_features}."
                )

    def dequantize(self) -> Tensor:
        """The weight as a float matrix ``(out_features, in_features)``."""
        weight = self.codes.to(torch.promote_types(self.scales.dtype, self.zeros.dtype))
        by_row, groups = self.by_row(), self.scales.shape[1]
        if self.group_index is None and weight.shape[1] == groups * self.group_size:
            grouped = torch.unflatten(weight, 1, (groups, -1))
            grouped.sub_(by_row.zeros.unsqueeze(-1)).mul_(by_row.scales.unsqueeze(-1))
            return weight
        return weight.sub_(self.by_input(self.zeros)).mul_(self.by_input(self.scales))

    def by_input(self, grouped: Tensor) -> Tensor:
        """``(out groups, groups)`` as one value for each code, ``(out_features, in_features)``."""
        rows = self._by_output(grouped)
        return spread(rows, self.codes.shape[1], self.group_index, self.group_size)

    def by_row(self) -> AffineWeight:
        """The same weight with a scale and a zero-point for each row: ``h(o) = o``."""
        if self.out_group_size == 1 and self.out_group_index is None:
            return self
        scales, zeros = self._by_output(self.scales), self._by_output(self.zeros)
        return replace(self, scales=scales, zeros=zeros, out_group_size=1, out_group_index=None)

    def _by_output(self, grouped: Tensor) -> Tensor:
        size, index = self.out_group_size, self.out_group_index
        return spread(grouped.t(), self.codes.shape[0], index, size).t()


def spread(
    grouped: Tensor, in_features: int, group_index: Tensor | None, group_size: int | None = None
) -> Tensor:
    """One value per group, ``(..., groups)``, as one per input, ``(..., in_features)``.

    Args:
        group_index: the group of each input; None when groups are neighbours.
        group_size: inputs in a group, of which the last may have fewer; default: all have as many.
    """
    if group_index is not None:
        return grouped.index_select(-1, group_index.to(grouped.device))
    size = group_size or -(-in_features // grouped.shape[-1])
    return grouped.repeat_interleave(size, dim=-1)[..., :in_features]


def spread_blocks(grouped: Tensor, shape: tuple[int, int], block: tuple[int, int]) -> Tensor:
    """One value per block, ``(out blocks, in blocks)``, as one per weight, ``shape``.

    Args:
        shape: ``(out_features, in_features)``; blocks at the edges may be smaller.
        block: outputs and inputs of a block, ``(128, 128)`` in DeepSeek's float8 checkpoints.
    """
    rows = spread(grouped.t(), shape[0], None, block[0]).t()
    return spread(rows, shape[1], None, block[1])


def pool(x: Tensor, groups: int, group_index: Tensor | None) -> Tensor:
    """The sum of ``x`` ``(..., in_features)`` over each group, ``(..., groups)``."""
    if group_index is None:
        return torch.unflatten(x, -1, (groups, -1)).sum(-1)
    sums = x.new_zeros(*x.shape[:-1], groups)
    return sums.index_add(-1, group_index.to(x.device), x)


def _fits(groups: int, features: int, size: int, index: Tensor | None) -> bool:
    return groups == -(-features // size) if index is None else groups > int(index.max())
