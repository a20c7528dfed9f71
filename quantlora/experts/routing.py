"""Which rows go to which expert: sorted once, so that each expert's are neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class Hit:
    """An expert with rows: ``start`` to ``stop`` among the sorted ones.

    ``parts`` are the rows of each sub-batch of a mixed batch, within these; of one, else.
    """

    expert: int
    start: int
    stop: int
    parts: tuple[tuple[int, int], ...]

    def part(self, group: int | None) -> tuple[int, int]:
        """The rows of sub-batch ``group`` counted from ``start``; all of them for None."""
        return (0, self.stop - self.start) if group is None else self.parts[group]


@dataclass(frozen=True)
class Routing:
    """The rows that go to an expert, sorted by expert, then by sub-batch.

    Args:
        tokens: for each the row of the hidden states it is, ``(routed,)``.
        slots: for each its place among the flattened top-k weights, ``(routed,)``.
        hits: the experts that have rows.
    """

    tokens: Tensor
    slots: Tensor
    hits: list[Hit]

    @property
    def rows(self) -> int:
        return self.hits[-1].stop if self.hits else 0


def by_index(index: Tensor, experts: int, groups: Tensor | None = None) -> Routing:
    """From the top-k index ``(tokens, k)``; numbers from ``experts`` on are other processes'.

    Args:
        groups: the sub-batch of each token ``(tokens,)``, from 0 on.
    """
    k = index.shape[-1]
    each = None if groups is None else groups.repeat_interleave(k)
    return _sorted(index.reshape(-1), k, experts, each)


def by_position(hidden: Tensor, experts: int, groups: Tensor | None = None) -> Routing:
    """Rows ``(experts · tokens, hidden)`` that are sorted already; those of zeros are left out.

    That is how Llama 4 says that a token is not for an expert, and its gate gives zero for zero.
    """
    positions = torch.arange(experts, device=hidden.device)
    index = positions.repeat_interleave(len(hidden) // experts)
    index = torch.where(hidden.any(-1), index, experts)
    return _sorted(index, 1, experts, groups)


def _sorted(index: Tensor, k: int, experts: int, groups: Tensor | None) -> Routing:
    """``index`` flat; the one synchronization with an accelerator is here."""
    count = 1 if groups is None else int(groups.max()) + 1
    keys = index if groups is None else index * count + groups
    order = torch.argsort(keys, stable=True)
    sizes = torch.bincount(keys.clamp(max=experts * count), minlength=experts * count)
    hits, start = [], 0
    for expert, group_sizes in enumerate(sizes[: experts * count].view(experts, count).tolist()):
        edges = [0]
        for size in group_sizes:
            edges.append(edges[-1] + size)
        if edges[-1]:
            parts = tuple(pairwise(edges))
            hits.append(Hit(expert, start, start + edges[-1], parts))
            start += edges[-1]
    order = order[:start]
    return Routing(order // k, order, hits)
