"""The best rank-r approximation of a matrix, at a fraction of the cost of a full SVD.

Residuals of quantization have flat spectra: their largest singular values lie close together,
and one or two passes of a randomized SVD leave 15 to 20 % of what could be captured. A block
Krylov space keeps every pass instead of the last one only, and so reaches the optimum in a few
(Musco and Musco 2015, arXiv:1504.05477, algorithm 2). What counts is the captured energy
``‖U Σ Vᵀ‖² = Σ σ²``; it is watched, and the passes end when they stop paying.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from quantlora import multiplies_bfloat16
from quantlora_loftq.krylov_space import KrylovSpace
from quantlora_loftq.norms import has_room, norm

METHODS = ("krylov", "exact")

#: The last pass is the one that lowers the squared error by less than this share ...
_WORTH = 1e-4
#: ... and raises the captured energy by less than this one.
_GAIN = 4e-3
#: Where hardly any error is left: the captured energy itself is known no better than this.
_PRECISION = 1e-6
#: Within a loop the passes go on for so much less: what one step leaves, the next one builds on.
_IN_A_LOOP = 0.1
#: What a pass in full precision may add to a space grown in bfloat16, as a share of the squared
#: error. Measured: 5e-6 to 1e-5; 7e-5 where the hardware cuts its sums of products off.
_CORRECTION = 5e-5
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
        of one size whatever the scaling; the sign of a negative one goes to B.
        """
        root = (self.sigma / abs(scaling)).sqrt()
        return root[:, None] * self.V.t(), self.U * root * math.copysign(1.0, scaling)

    @property
    def energy(self) -> float:
        """``‖U Σ Vᵀ‖²``, the part of ``‖matrix‖²`` that is captured."""
        return float(self.sigma.double().square().sum())


def low_rank(
    matrix: Tensor,
    r: int,
    *,
    method: str = "krylov",
    seed: int = 0,
    start: Tensor | None = None,
    in_a_loop: bool = False,
) -> LowRank:
    """The best approximation of ``matrix`` ``(m, n)`` of rank ``r`` in the Frobenius norm.

    Args:
        method: ``"krylov"``, or ``"exact"`` for a full SVD.
        seed: of the random start block; the same seed gives the same result.
        start: rows ``(k, n)`` believed to span nearly what is sought, from a similar matrix.
        in_a_loop: the result decides what matrix comes next: work in full precision throughout,
            and more closely, so that the hardware does not decide where the loop ends.

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
    size = norm(matrix)
    if size and not has_room(size):
        again = partial(low_rank, r=r, seed=seed, start=start, in_a_loop=in_a_loop)
        return _rescaled(matrix, size, again)
    block = _start(matrix, r, seed, start)
    if in_a_loop or not _rounds(matrix):
        return _krylov(matrix, r, block, worth=_IN_A_LOOP if in_a_loop else 1.0)
    coarse = _krylov(matrix, r, block, matrix.bfloat16())
    found = _once_more(matrix, coarse, r)
    return found or _krylov(matrix, r, _start(matrix, r, seed, coarse.V.t()))


def _rescaled(matrix: Tensor, size: float, solve: Callable[[Tensor], LowRank]) -> LowRank:
    """The step for a matrix of another size, brought to one by a power of two: that is exact."""
    exponent = math.frexp(size)[1]
    first, second = exponent // 2, exponent - exponent // 2  # one factor alone may be infinite
    found = solve(matrix * 2.0**-first * 2.0**-second)
    return LowRank(found.U, found.sigma * 2.0**first * 2.0**second, found.V)


def _start(matrix: Tensor, r: int, seed: int, start: Tensor | None) -> Tensor:
    """Columns ``(n, block)``: the given ones, and seeded random ones for what they miss.

    The random ones are drawn on the CPU: the same on every device.
    """
    started = 0 if start is None else start.shape[0]
    block = max(_NARROW if r <= _NARROW else _WIDE, started + 8 if started else 0)
    generator = torch.Generator().manual_seed(seed)
    fresh = torch.randn(matrix.shape[1], block - started, generator=generator).to(matrix)
    return fresh if start is None else torch.cat([start.t().to(matrix), fresh], 1)


def _krylov(
    matrix: Tensor, r: int, block: Tensor, coarse: Tensor | None = None, worth: float = 1.0
) -> LowRank:
    """Grow the space until ``matrix ≈ P Zᵀ`` as far as rank ``r`` goes; then it is small.

    Args:
        coarse: ``matrix`` rounded, to multiply with: rounding a flat spectrum turns its leading
            space by little, and a pass in full precision turns it back.
        worth: a factor of what ends the passes.
    """
    coarse = matrix if coarse is None else coarse
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
        gain = worth * min(_WORTH * (total - energy), _GAIN * energy)
        if energy - before <= gain + _PRECISION * energy:
            break
    return _ritz(space, r)


def _rounds(matrix: Tensor) -> bool:
    return matrix.dtype == torch.float32 and multiplies_bfloat16(matrix.device)


def _product(coarse: Tensor, block: Tensor) -> Tensor:
    """``coarse · block`` in the block's dtype."""
    return (coarse @ block.to(coarse.dtype)).to(block.dtype)


def _once_more(matrix: Tensor, found: LowRank, r: int) -> LowRank | None:
    """One pass of subspace iteration from what was found, in the matrix's own precision.

    None where that adds more than rounding to bfloat16 explains: how the hardware rounds is its
    own affair (AMX sums otherwise than AVX512), so what was found is judged by the energy that it
    captures, taken without rounding.
    """
    space = KrylovSpace(matrix, r)
    product = matrix @ found.V
    P = space.beyond(product)
    space.add(P, matrix.t() @ P)
    corrected = _ritz(space, r)
    before, energy = float(product.norm()) ** 2, corrected.energy
    rest = max(float(matrix.norm()) ** 2 - energy, 0.0)
    good = energy - before <= _CORRECTION * rest + _PRECISION * energy
    return corrected if good else None


def _ritz(space: KrylovSpace, r: int) -> LowRank:
    """The best rank-r part of ``P Zᵀ``; zeros where its rank is lower."""
    values, vectors = torch.linalg.eigh(space.gram)
    lacking = max(0, r - space.width)
    top = F.pad(vectors[:, -r:].flip(1), (0, lacking)).to(space.Z)
    sigma = F.pad(values[-r:].flip(0).clamp(min=0).sqrt(), (0, lacking)).to(space.Z)
    V = space.Z @ top
    V = V / torch.where(sigma > 0, sigma, 1.0)
    return LowRank(space.P @ top, sigma, V)
