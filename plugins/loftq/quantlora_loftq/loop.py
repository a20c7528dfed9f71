"""LoftQ's alternation: quantize what the low-rank part leaves, fit what quantization leaves.

    Q_t = quantize(W - s·B·A)        s·B·A = best rank-r approximation of W - dequantize(Q_t)

LoftQ: Li et al. 2023, arXiv:2310.08659, algorithm 1. The paper has s = 1; here s enters only at
the end, when the product is split into A and B, so every scaling gives the same error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quantlora_loftq.low_rank import LowRank, low_rank
from quantlora_loftq.norms import norm


@dataclass(frozen=True)
class Problem:
    """What to approximate, and how.

    Args:
        weight: W ``(out, in)`` in float32 or float64.
        unpack: a packed layer's weight ``(out, in)``.
        pack: a float weight as a packed layer; None where the layer must stay as it is.
        r: rank of the low-rank part.
        method, seed: as for `low_rank`.
        metric: weight ``(in,)`` of each column's error; None for the Frobenius norm.
    """

    weight: Tensor
    unpack: Callable[[nn.Module], Tensor]
    pack: Callable[[Tensor], nn.Module] | None
    r: int
    method: str = "krylov"
    seed: int = 0
    metric: Tensor | None = None


@dataclass(frozen=True)
class Solution:
    """A packed layer and the low-rank part beside it: ``W ≈ dequantize(base) + product``.

    ``error`` is ``‖W - dequantize(base) - product‖``, in the metric; ``plain_error`` that of
    the layer it began with, with no low-rank part.
    """

    base: nn.Module
    low: LowRank
    metric: Tensor | None
    error: float
    plain_error: float

    def factors(self, scaling: float) -> tuple[Tensor, Tensor]:
        """A ``(r, in)`` and B ``(out, r)`` with ``scaling · B · A = product``."""
        A, B = self.low.factors(scaling)
        return (A if self.metric is None else A / self.metric), B

    @property
    def product(self) -> Tensor:
        A, B = self.factors(1.0)
        return B @ A


@torch.no_grad()
def solve(problem: Problem, base: nn.Module, iterations: int) -> Solution:
    """Alternate ``iterations`` times, beginning with ``base`` = quantize(W).

    The best pair met is returned: rounding moves the blocks' scales, so that a round may lose
    a little, and more rounds must never be worse than fewer.
    """
    rounds = iterations if problem.pack else 1
    best = current = _fit(problem, base, None, rounds > 1)
    for _ in range(1, rounds):
        assert problem.pack is not None
        repacked = problem.pack(problem.weight - current.product)
        current = _fit(problem, repacked, current, True)
        best = min(best, current, key=lambda solution: solution.error)
    return best


def _fit(problem: Problem, base: nn.Module, before: Solution | None, in_a_loop: bool) -> Solution:
    """The low-rank step for a given ``base``, started from the step before."""
    residual = problem.weight - problem.unpack(base).to(problem.weight)
    if problem.metric is not None:
        residual *= problem.metric
    start = None if before is None else before.low.V.t()
    low = low_rank(
        residual,
        problem.r,
        method=problem.method,
        seed=problem.seed,
        start=start,
        in_a_loop=in_a_loop,
    )
    square = norm(residual) ** 2
    error = max(square - low.energy, 0.0) ** 0.5
    plain = square**0.5 if before is None else before.plain_error
    return Solution(base, low, problem.metric, error, plain)
