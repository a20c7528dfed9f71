"""Principal directions of rows that come in batches, never all of them in memory.

Ross et al. 2008 (Int. J. Comput. Vision 77): what is known of the rows so far, the new ones and the
move of their mean are one small matrix, whose SVD is what is known afterwards.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantlora_loftq.low_rank import low_rank


class IncrementalDirections:
    """The ``k`` first principal directions ``(k, width)`` of all rows, their mean taken off.

    More are kept than are asked for: what is dropped after one batch is missing in the next.
    """

    def __init__(self, k: int, seed: int = 0) -> None:
        self.k, self.seed = k, seed
        self._kept = 2 * k + 8
        self.count = 0
        self.directions: Tensor | None = None
        self.sigma = torch.zeros(0)
        self.similarity = torch.zeros(0)

    def add(self, rows: Tensor) -> None:
        """Take in ``rows`` ``(n, width)``; fewer than ``k`` are left out, as nothing settles."""
        if len(rows) < min(self.k, rows.shape[1]):
            return
        rows = rows.float()
        mean = rows.mean(0, dtype=torch.float64)
        centred = (rows - mean.to(rows)).nan_to_num()
        spread = float(centred.square().sum(dtype=torch.float64))
        before = self.directions
        if before is None:
            self.mean, self.spread, parts = mean, spread, [centred]
        else:
            weight = self.count * len(rows) / (self.count + len(rows))
            moved = self.mean - mean
            parts = [self.sigma[:, None] * before, centred, (weight**0.5 * moved)[None].to(rows)]
            self.spread += spread + weight * float(moved.square().sum())
            self.mean = mean + moved * self.count / (self.count + len(rows))
        self.count += len(rows)
        matrix = torch.cat(parts)
        found = low_rank(matrix, min(self._kept, *matrix.shape), seed=self.seed)
        self.directions, self.sigma = found.V.t().contiguous(), found.sigma
        if before is not None:
            both = min(len(before), len(self.directions))
            products = (before[:both] * self.directions[:both]).sum(1)
            self.similarity = products.abs()

    @property
    def shares(self) -> Tensor:
        """The share of the variance that each direction explains ``(k,)``."""
        return self.sigma[: self.k].double().square() / max(self.spread, 1e-300)

    def settled(self, r: int, tau: float) -> bool:
        """Whether the last batch has left a cosine of ``tau`` to each of the first ``r``."""
        cosines = self.similarity[:r]
        return r == 0 or (len(cosines) >= r and bool((cosines >= tau).all()))
