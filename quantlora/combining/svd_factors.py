"""A matrix as the product of two thin ones, by singular value decomposition."""

from __future__ import annotations

import torch
from torch import Tensor


def best_factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A ``(rank, in)`` and B ``(out, rank)`` with B·A nearest to ``matrix`` (Eckart and Young)."""
    U, S, V = torch.linalg.svd(matrix, full_matrices=False)
    return V[:rank], U[:, :rank] * S[:rank]


def factors_of_sum(A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The same for ``matrix = B·A``, A ``(n, in)`` and B ``(out, n)``, without forming it.

    The decomposition is that of an (n, n) matrix, between the orthogonal bases of A and B.
    """
    basis_B, small_B = torch.linalg.qr(B)
    basis_A, small_A = torch.linalg.qr(A.t())
    left, right = best_factors(small_B @ small_A.t(), rank)
    return left @ basis_A.t(), basis_B @ right
