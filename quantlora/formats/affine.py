"""Weights on a uniform grid: codes, and a scale and a zero-point for each group of inputs.

Most formats of integer codes are of this kind. A quantizer that shows its layers so
(`Quantizer.affine`) can be merged with QA-LoRA exactly; one that can hold a float zero-point
(`Quantizer.from_affine`) can hold the result.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AffineWeight:
    """``W[o, i] = (codes[o, i] - zeros[o, g(i)]) * scales[o, g(i)]``.

    Args:
        codes: uint8 ``(out_features, in_features)``, each below ``2 ** bits``.
        scales, zeros: float ``(out_features, groups)``.
        bits: 2, 3, 4 or 8.
        group_size: inputs in a group.
        group_index: the group of each input ``(in_features,)``; None when groups are neighbours.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    bits: int
    group_size: int
    group_index: Tensor | None = None

    def dequantize(self) -> Tensor:
        """The weight as a float matrix ``(out_features, in_features)``."""
        weight = self.codes.to(torch.promote_types(self.scales.dtype, self.zeros.dtype))
        groups = self.scales.shape[1]
        if self.group_index is None and weight.shape[1] % groups == 0:
            grouped = torch.unflatten(weight, 1, (groups, -1))
            grouped.sub_(self.zeros.unsqueeze(-1)).mul_(self.scales.unsqueeze(-1))
            return weight
        return weight.sub_(self.by_input(self.zeros)).mul_(self.by_input(self.scales))

    def by_input(self, grouped: Tensor) -> Tensor:
        """``(out, groups)`` spread to ``(out, in_features)``."""
        return spread(grouped, self.codes.shape[1], self.group_index)


def spread(grouped: Tensor, in_features: int, group_index: Tensor | None) -> Tensor:
    """One value per group, ``(..., groups)``, as one per input, ``(..., in_features)``."""
    if group_index is not None:
        return grouped.index_select(-1, group_index.to(grouped.device))
    size = -(-in_features // grouped.shape[-1])
    return grouped.repeat_interleave(size, dim=-1)[..., :in_features]


def pool(x: Tensor, groups: int, group_index: Tensor | None) -> Tensor:
    """The sum of ``x`` ``(..., in_features)`` over each group, ``(..., groups)``."""
    if group_index is None:
        return torch.unflatten(x, -1, (groups, -1)).sum(-1)
    sums = x.new_zeros(*x.shape[:-1], groups)
    return sums.index_add(-1, group_index.to(x.device), x)
