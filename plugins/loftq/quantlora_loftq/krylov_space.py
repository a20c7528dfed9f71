"""The space in which the low-rank step looks for its factors."""

from __future__ import annotations

import torch
from torch import Tensor

#: A column this small beside the largest of its block is rounding.
_NOTHING = 1e-5


class KrylovSpace:
    """An orthonormal ``P`` ``(m, k)``, ``Z = matrixᵀ · P`` ``(n, k)`` and ``Zᵀ · Z``.

    Kept as rows, with room to grow: a new block moves nothing, and adds its own products only.
    """

    def __init__(self, matrix: Tensor, room: int) -> None:
        self._P = matrix.new_empty(room, matrix.shape[0])
        self._Z = matrix.new_empty(room, matrix.shape[1])
        self._gram = matrix.new_empty(room, room, dtype=torch.float64)
        self.room, self.width = room, 0

    @property
    def P(self) -> Tensor:  # noqa: N802
        return self._P[: self.width].t()

    @property
    def Z(self) -> Tensor:  # noqa: N802
        return self._Z[: self.width].t()

    @property
    def gram(self) -> Tensor:
        """``Zᵀ Z`` in float64: squares need the room."""
        return self._gram[: self.width, : self.width]

    def add(self, fresh: Tensor, block: Tensor) -> None:
        """``fresh`` beside P, and ``block = matrixᵀ · fresh`` beside Z."""
        new = slice(self.width, self.width + fresh.shape[1])
        self._P[new], self._Z[new] = fresh.t(), block.t()
        self.width = new.stop
        products = self._Z[: new.stop] @ block
        self._gram[: new.stop, new] = products.double()
        self._gram[new, : new.stop] = products.t().double()

    def beyond(self, columns: Tensor) -> Tensor:
        """An orthonormal basis of ``columns`` without their part in ``P``; twice is enough.

        Columns of which hardly anything is left are dropped: QR would make up directions for them.
        """
        least = _NOTHING * float(columns.norm(dim=0).max())
        for _ in range(2):
            columns = columns - self.P @ (self.P.t() @ columns)
            Q, R = torch.linalg.qr(columns)
            columns = Q[:, R.diagonal().abs() > least]
            least = _NOTHING
        return columns
