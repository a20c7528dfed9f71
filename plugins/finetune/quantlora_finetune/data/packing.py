"""Several examples in one row, each by itself: positions begin anew, and none sees another.

Transformers masks attention between examples where position ids begin anew and there is no
attention mask, in the eager and sdpa implementations as in flash attention.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

from quantlora_finetune.data.examples import Example


@dataclass(frozen=True)
class PackedRow:
    """Examples that follow one another in one row."""

    examples: tuple[Example, ...]

    @property
    def input_ids(self) -> list[int]:
        return [token for example in self.examples for token in example.input_ids]

    @property
    def labels(self) -> list[int]:
        """The first token of each is not learned: nothing predicts it."""
        return [label for example in self.examples for label in example.labels]

    @property
    def position_ids(self) -> list[int]:
        return [i for example in self.examples for i in range(len(example.input_ids))]

    @property
    def learned(self) -> int:
        return sum(example.learned for example in self.examples)


def packed(examples: Sequence[Example], length: int) -> list[PackedRow]:
    """Rows of at most ``length`` tokens that together hold each example once.

    The longest first, each into the row with the least room that it fits into (best-fit
    decreasing, whose rows are at most 11/9 of the fewest; Johnson 1973).
    """
    rows: dict[int, list[list[Example]]] = {}  # by the room that is left
    rooms: list[int] = []
    for example in sorted(examples, key=lambda each: -len(each.input_ids)):
        size = len(example.input_ids)
        at = bisect_left(rooms, size)
        room = rooms[at] if at < len(rooms) else length
        row = rows[room].pop() if at < len(rooms) else []
        if at < len(rooms) and not rows[room]:
            del rows[room], rooms[at]
        row.append(example)
        if room - size not in rows:
            insort(rooms, room - size)
        rows.setdefault(room - size, []).append(row)
    return [PackedRow(tuple(row)) for same in rows.values() for row in same]
