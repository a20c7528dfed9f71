"""What every block holds: values, a scale for each group of them, and sometimes an offset."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """``weight = scales * values + offsets``, in float32, in the order of operations of ggml.

    Args:
        values: ``(blocks, groups, size)``: codes, shifted or looked up; integers of any dtype.
        scales: ``(blocks, groups, 1)``.
        offsets: ``(blocks, groups, 1)``; None where the format has none.
    """

    values: Tensor
    scales: Tensor
    offsets: Tensor | None = None

    def weights(self) -> Tensor:
        """``(blocks, groups * size)``, a new tensor."""
        weights = self.values.to(torch.float32) * self.scales
        if self.offsets is not None:
            weights += self.offsets
        return weights.flatten(1)


def half(blocks: Tensor, start: int) -> Tensor:
    """The float16 at byte ``start`` of each block, ``(blocks, 1)`` in float32."""
    return blocks[:, start : start + 2].contiguous().view(torch.float16).float()


def nibbles(packed: Tensor) -> Tensor:
    """``(..., n)`` bytes as ``(..., 2, n)`` codes: all low halves, then all high ones."""
    return torch.stack([packed & 15, packed >> 4], dim=-2)


def shifted(packed: Tensor, bits: int) -> Tensor:
    """``(..., n)`` bytes as ``(..., 8 // bits, n)`` codes of ``bits`` bits, the lowest first."""
    mask = (1 << bits) - 1
    return torch.stack([(packed >> shift) & mask for shift in range(0, 8, bits)], dim=-2)
