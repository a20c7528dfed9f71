"""Which examples are trained on and which are measured on: no example is in both.

The data's end, a share of the rows that is drawn, or data of their own.
"""

from __future__ import annotations

import random
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import TypeVar

from quantlora.errors import FinetuneError
from quantlora_finetune.data.examples import Example, TrainingTokenizer, sequences_of
from quantlora_finetune.data.forms import column_map
from quantlora_finetune.data.records import Record, Text
from quantlora_finetune.data.sources import read_records
from quantlora_finetune.options.data import DataOptions

T = TypeVar("T")


@dataclass(frozen=True)
class Split:
    """Token sequences of both parts, those with nothing to learn too."""

    train: list[Example]
    held_out: list[Example]


def split_of_data(
    records: Sequence[Record], tokenizer: TrainingTokenizer, options: DataOptions, seed: int
) -> Split:
    """The records as sequences, in the two parts that ``options`` ask for.

    Raises:
        FinetuneError: the data to measure on cannot be read.
    """
    if options.eval_data is not None:
        others = read_records(options.eval_data, options.split, column_map(options.map))
        return Split(
            sequences_of(records, tokenizer, options.length),
            sequences_of(others, tokenizer, options.length),
        )
    if options.validation is not None:
        return _drawn(records, tokenizer, options, seed)
    return _at_the_end(sequences_of(records, tokenizer, options.length), options.held_out)


def _at_the_end(sequences: list[Example], share: float) -> Split:
    learned = [i for i, sequence in enumerate(sequences) if sequence.learned]
    count = max(1, round(len(learned) * share))
    first = learned[-count] if len(learned) >= count else 0
    return Split(sequences[:first], sequences[first:])


def _drawn(
    records: Sequence[Record], tokenizer: TrainingTokenizer, options: DataOptions, seed: int
) -> Split:
    """Whole rows, so that no turn of a conversation is in another part than the rest of it."""
    texts = [record for record in records if isinstance(record, Text)]
    rows = [record for record in records if not isinstance(record, Text)]
    windows = sequences_of(texts, tokenizer, options.length)
    units = [[window] for window in windows]
    units += [sequences_of([row], tokenizer, options.length) for row in rows]
    train, held_out = split_rows(units, options, seed)
    return Split(*([each for unit in part for each in unit] for part in (train, held_out)))


def split_rows(rows: Sequence[T], options: DataOptions, seed: int) -> tuple[list[T], list[T]]:
    """Rows that are each an example, in the two parts."""
    if options.validation is None:
        count = max(1, round(len(rows) * options.held_out))
        return list(rows[:-count]), list(rows[-count:])
    count = max(1, round(len(rows) * options.validation))
    drawn = set(random.Random(seed).sample(range(len(rows)), min(count, len(rows))))
    parts: tuple[list[T], list[T]] = ([], [])
    for i, row in enumerate(rows):
        parts[i in drawn].append(row)
    return parts


def check_parts(name: str, train: Sized, held_out: Sized, length: int) -> None:
    """Raise `FinetuneError` where a part has no example."""
    count = len(train) + len(held_out)
    if not len(train) or not len(held_out):
        raise FinetuneError(
            f"{name} gives {count} examples of {length} tokens; at least 2 are "
            f"needed, one to train on and one to measure on. Use more text, or another --length."
        )
