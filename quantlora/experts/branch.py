"""`Branch`: the low-rank product of one adapter beside one of the two stacks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Branch:
    """``scaling · x · A[e]ᵀ · B[e]ᵀ`` for expert e.

    Args:
        name: the stack it is beside.
        A: ``(experts, r, in)``.
        B: ``(experts, out, r)``.
        scaling: factor of the update.
        dropout: probability of dropping an element of x.
        group: the sub-batch it adds to; None: every row.
        dtype: what it is computed in.
    """

    name: str
    A: Tensor
    B: Tensor
    scaling: float
    dropout: float
    group: int | None
    dtype: torch.dtype

    def inner(self, x: Tensor, A: Tensor, expert: int) -> Tensor:
        """``scaling · x · A[e]ᵀ`` of rank r, from x after dropout."""
        return F.linear(x.to(self.dtype), A[expert].to(self.dtype)) * self.scaling

    def outer(self, h: Tensor, B: Tensor, expert: int) -> Tensor:
        return F.linear(h, B[expert].to(self.dtype))


def dropped(x: Tensor, p: float, seed: int) -> Tensor:
    """``x`` after dropout with the mask of ``seed``: made again in backward instead of kept."""
    if not p:
        return x
    generator = torch.Generator(x.device).manual_seed(seed)
    kept = torch.rand(x.shape, generator=generator, device=x.device) >= p
    return x * kept.to(x.dtype) / (1 - p)
