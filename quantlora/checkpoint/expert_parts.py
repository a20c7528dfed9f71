"""The adapter of a stack of experts from those of single layers, and taken apart into them.

Gate and up are one matrix in the stack, one below the other, so their adapters are one of both
ranks:

    gate  A₁ (r, in), B₁ (n, r)     up  A₂, B₂     ->     A = [A₁; A₂]     B = [B₁ 0; 0 B₂]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

#: A ``(r, in)``, B ``(out, r)`` and the scale of one layer.
Part = tuple[Tensor, Tensor, float]


@dataclass
class ExpertParts:
    """The layers that one stack is made of, and their adapters.

    Args:
        projections: one below the other in each matrix.
        shape: ``(experts, out, in)`` of the stack.
        parts: by expert and projection.
    """

    projections: Sequence[str]
    shape: Sequence[int]
    parts: dict[tuple[int, str], Part] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Outputs of one projection."""
        return self.shape[1] // len(self.projections)

    @property
    def ranks(self) -> list[int]:
        """Of each projection, the largest that an expert has; 0 where none has an adapter."""
        found = dict.fromkeys(self.projections, 0)
        for (_, projection), (A, _, _) in self.parts.items():
            found[projection] = max(found[projection], len(A))
        return list(found.values())

    @property
    def scale(self) -> float:
        """The usual one; others are made up for in B."""
        scales = Counter(scale for _, _, scale in self.parts.values() if scale)
        return scales.most_common(1)[0][0] if scales else 0.0

    def fits(self, expert: int, part: Part) -> bool:
        experts, _, into = self.shape
        A, B, _ = part
        return expert < experts and A.shape[1:] == (into,) and B.shape == (self.rows, len(A))

    def joined(self) -> tuple[Tensor, Tensor]:
        """A ``(experts · r, in)`` and B ``(out, r · experts)``, as a file of the stack has them."""
        experts, out, into = self.shape
        some, ranks, scale = next(iter(self.parts.values()))[0], self.ranks, self.scale
        A = some.new_zeros(experts, sum(ranks), into)
        B = some.new_zeros(experts, out, sum(ranks))
        for (expert, projection), (first, second, factor) in self.parts.items():
            i = self.projections.index(projection)
            start = sum(ranks[:i])
            A[expert, start : start + len(first)] = first
            block = B[expert, i * self.rows : (i + 1) * self.rows, start : start + len(first)]
            block.copy_(second if factor == scale else second * (factor / scale))
        return A.reshape(-1, into), B.permute(1, 2, 0).reshape(out, -1)

    def divide(self, A: Tensor, B: Tensor, scale: float) -> None:
        """The reverse: fill ``parts``; each has the whole rank but where B shows two blocks."""
        experts, out, into = self.shape
        first = A.reshape(experts, -1, into)
        second = B.reshape(out, -1, experts).permute(2, 0, 1)
        columns = list(self._columns(second))
        for expert in range(experts):
            for i, projection in enumerate(self.projections):
                below = second[expert, i * self.rows : (i + 1) * self.rows, columns[i]]
                part = (first[expert, columns[i]].clone(), below.contiguous(), scale)
                self.parts[expert, projection] = part

    def _columns(self, B: Tensor) -> Iterator[slice]:
        """Those of the rank that each projection needs, of B ``(experts, out, r)``."""
        count, r = len(self.projections), B.shape[2]
        own = [slice(i * r // count, (i + 1) * r // count) for i in range(count)]
        blocks = B.reshape(len(B), count, self.rows, r)
        others = [
            blocks[:, i, :, : part.start].any() or blocks[:, i, :, part.stop :].any()
            for i, part in enumerate(own)
        ]
        apart = r % count == 0 and bool(B.any()) and not any(map(bool, others))
        yield from own if apart else [slice(0, r)] * count
