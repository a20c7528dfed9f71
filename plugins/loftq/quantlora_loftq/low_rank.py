"""The best rank-r approximation of a matrix, at a fraction of the cost of a full SVD.

Residuals of quantization have flat spectra: their largest singular values lie close together,
and one or two passes of a randomized SVD leave 15 to 20 % of what could be captured. A block
Krylov space keeps every pass instead of the last one only, and so reaches the optimum in a few
(Musco and Musco 2015, arXiv:1504.05477, algorithm 2). What counts is the captured energy
``‖U Σ Vᵀ‖² = Σ σ²``; it is watched, and the passes end when they stop paying.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from quantlora import multiplies_bfloat16
from quantlora_loftq.krylov_space import KrylovSpace

METHODS = ("krylov", "exact")

#: The last pass is the one that lowers the squared error by less than this share ...
_WORTH = 1e-4
#: ... and raises the captured energy by less than this one.
_GAIN = 4e-3
#: Where hardly any error is left: the captured energy itself is known no better than this.
_PRECISION = 1e-6
#: Blocks, and times the rank, before which nothing is judged.
_AT_LEAST = 4
#: Columns of a block: narrow ones go deeper for the same work, wide ones use the cores better.
_NARROW, _WIDE = 16, 32
#: Matrices up to this size, and high ranks, are left to a full SVD: it is quick there.
_SMALL = 512
#: The space is grown to so many times the rank at most; beyond, a full SVD is as good.
_LARGEST = 16


@dataclass(frozen=True)
class LowRank:
    """``matrix ≈ U · diag(sigma) · Vᵀ`` with U ``(m, r)``, sigma ``(r,)`` falling, V ``(n, r)``."""

    U: Tensor
    sigma: Tensor
    V: Tensor

    def factors(self, scaling: float = 1.0) -> tuple[Tensor, Tensor]:
        """``(A, B)`` of shapes ``(r, n)`` and ``(m, r)`` with ``scaling · B · A = U Σ Vᵀ``.

        Each takes the root of the singular values and of ``1 / scaling``, so that both are
        of one size whatever the scaling.
        """
        root = (self.sigma / scaling).sqrt()
        return root[:, None] * self.V.t(), self.U * root

    @property
    def energy(self) -> float:
        """``‖U Σ Vᵀ‖²``, the part of ``‖matrix‖²`` that is captured."""
        return float(self.sigma.double().square().sum())


def low_rank(
    matrix: Tensor, r: int, *, method: str = "krylov", seed: int = 0, start: Tensor | None = None
) -> LowRank:
    """The best approximation of ``matrix`` ``(m, n)`` of rank ``r`` in the Frobenius norm.

    Args:
        method: ``"krylov"``, or ``"exact"`` for a full SVD.
        seed: of the random start block; the same seed gives the same result.
        start: rows ``(k, n)`` believed to span nearly what is sought, from a similar matrix.

    Raises:
        ValueError: ``r`` is larger than the matrix, or ``method`` is unknown.
    """
    if not 1 <= r <= min(matrix.shape):
        raise ValueError(f"rank {r} does not fit a matrix of {tuple(matrix.shape)}.")
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}.")
    if method == "exact" or min(matrix.shape) <= max(_SMALL, 4 * r):
        U, sigma, Vh = torch.linalg.svd(matrix, full_matrices=False)
        return LowRank(U[:, :r], sigma[:r], Vh[:r].t())
    return _krylov(matrix, r, _start(matrix, r, seed, start))


def _start(matrix: Tensor, r: int, seed: int, start: Tensor | None) -> Tensor:
    """Columns ``(n, block)``: the given ones, and seeded random ones for what they miss.

    The random ones are drawn on the CPU: the same on every device.
    """
    known = 0 if start is None else start.shape[0]
    block = max(_NARROW if r <= _NARROW else _WIDE, known + 8 if known else 0)
    generator = torch.Generator().manual_seed(seed)
    fresh = torch.randn(matrix.shape[1], block - known, generator=generator).to(matrix)
    return fresh if start is None else torch.cat([start.t().to(matrix), fresh], 1)


def _krylov(matrix: Tensor, r: int, block: Tensor) -> LowRank:
    """Grow the space until ``matrix ≈ P Zᵀ`` as far as rank ``r`` goes; then it is small.

    Where the hardware multiplies bfloat16, the space grows in it: rounding a flat spectrum turns
    its leading space by little, and the last pass, in full precision, turns it back.
    """
    coarse = matrix.bfloat16() if _rounds(matrix) else matrix
    room = max(block.shape[1], min(*matrix.shape, _LARGEST * max(r, _NARROW)))
    space = KrylovSpace(matrix, room)
    total, energy = float(matrix.norm()) ** 2, 0.0
    while space.width + block.shape[1] <= room:
        fresh = space.beyond(_product(coarse, block))
        if not fresh.shape[1]:
            break
        block = _product(coarse.t(), fresh)
        space.add(fresh, block)
        if space.width < _AT_LEAST * max(r, block.shape[1]):
            continue
        before, energy = energy, float(torch.linalg.eigvalsh(space.gram)[-r:].sum())
        if energy - before <= min(_WORTH * (total - energy), _GAIN * energy) + _PRECISION * energy:
            break
    found = _ritz(space, r)
    return found if coarse is matrix else _once_more(matrix, found, r)


def _rounds(matrix: Tensor) -> bool:
    return matrix.dtype == torch.float32 and multiplies_bfloat16(matrix.device)


def _product(coarse: Tensor, block: Tensor) -> Tensor:
    """``coarse · block`` in the block's dtype."""
    return (coarse @ block.to(coarse.dtype)).to(block.dtype)


def _once_more(matrix: Tensor, found: LowRank, r: int) -> LowRank:
    """One pass of subspace iteration from what was found, in the matrix's own precision."""
    space = KrylovSpace(matrix, r)
    P = space.beyond(matrix @ found.V)
    space.add(P, matrix.t() @ P)
    return _ritz(space, r)


def _ritz(space: KrylovSpace, r: int) -> LowRank:
    """The best rank-r part of ``P Zᵀ``; zeros where its rank is lower."""
    values, vectors = torch.linalg.eigh(space.gram)
    lacking = max(0, r - space.width)
    top = F.pad(vectors[:, -r:].flip(1), (0, lacking)).to(space.Z)
    sigma = F.pad(values[-r:].flip(0).clamp(min=0).sqrt(), (0, lacking)).to(space.Z)
    V = space.Z @ top
    V = V / torch.where(sigma > 0, sigma, 1.0)
    return LowRank(space.P @ top, sigma, V)
