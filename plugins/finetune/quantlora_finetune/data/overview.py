"""What a file of data looks like to a training: its forms, its lengths, what would be cut off."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from quantlora_finetune.data.examples import Example, TrainingTokenizer, sequences_of
from quantlora_finetune.data.forms import column_map
from quantlora_finetune.data.left_out import unknown_roles
from quantlora_finetune.data.packing import packed
from quantlora_finetune.data.records import (
    Chat,
    Exchange,
    Instruction,
    Labelled,
    Preference,
    Record,
    Text,
)
from quantlora_finetune.data.sources import read_counted
from quantlora_finetune.data.template import check_conversations
from quantlora_finetune.options.data import DataOptions

_FORMS = {
    Text: "texts, cut into windows",
    Exchange: "prompts with a completion",
    Chat: "conversations",
    Instruction: "instructions with an answer",
    Preference: "pairs of a chosen and a rejected answer",
    Labelled: "answers with a label",
}
_TRAINERS = {Preference: "dpo", Labelled: "kto"}
#: Longer than any example: what it would be uncut.
_UNCUT = 1 << 24
#: Bars of the histogram.
_BARS = 12


@dataclass(frozen=True)
class Overview:
    """``examples`` as a training with ``length`` would see them.

    Args:
        forms: how many rows are of each form.
        reasons: how many rows are left out, by what is wrong with them.
        roles: conversations with a role that most templates do not have, by role.
        lengths: tokens of each answer's example before it is cut off; none for texts.
        left_out: examples whose prompt alone is as long as ``length``.
        rows: those that the examples are packed into; None: each is a row.
        trainer: the one that the rows are for, where it is not the usual one.
    """

    forms: dict[str, int]
    reasons: Counter[str]
    roles: Counter[str]
    length: int
    examples: list[Example]
    lengths: list[int]
    left_out: int
    rows: int | None = None
    trainer: str | None = None

    @property
    def empty(self) -> int:
        return self.reasons.total()

    @property
    def cut(self) -> int:
        return sum(example.is_cut for example in self.examples)

    @property
    def tokens(self) -> int:
        return sum(len(example.input_ids) for example in self.examples)

    @property
    def learned(self) -> int:
        return sum(example.learned for example in self.examples)


def overview(options: DataOptions, tokenizer: TrainingTokenizer) -> Overview:
    """Read the data that ``options`` name as a training would.

    Raises:
        FinetuneError: see `read_records`.
    """
    length = options.length
    records, reasons = read_counted(options.data, options.split, column_map(options.map))
    check_conversations(records, options)
    forms = Counter(_FORMS[type(record)] for record in records)
    sequences = sequences_of(records, tokenizer, length)
    examples = [sequence for sequence in sequences if sequence.learned > 0]
    left_out = len(sequences) - len(examples)
    lengths = _lengths(records, tokenizer)
    rows = len(packed(examples, length)) if options.packing else None
    kinds = {type(record) for record in records}
    trainer = next((name for kind, name in _TRAINERS.items() if kind in kinds), None)
    roles = unknown_roles(records)
    return Overview(dict(forms), reasons, roles, length, examples, lengths, left_out, rows, trainer)


def _lengths(records: Sequence[Record], tokenizer: TrainingTokenizer) -> list[int]:
    answers = [record for record in records if not isinstance(record, Text)]
    return [len(example.input_ids) for example in sequences_of(answers, tokenizer, _UNCUT)]


def histogram(lengths: Sequence[int]) -> list[tuple[str, int]]:
    """Ranges of lengths, with how many are in each; at most twelve, of one round width."""
    width = _round_up(max(lengths) / _BARS)
    per_bar = Counter(length // width for length in lengths)
    return [
        (f"{i * width} to {(i + 1) * width - 1}", per_bar[i])
        for i in range(min(per_bar), max(per_bar) + 1)
    ]


def _round_up(width: float) -> int:
    """1, 2 or 5 times a power of ten, at least ``width``."""
    power = 1
    while True:
        for factor in (1, 2, 5):
            if factor * power >= width:
                return factor * power
        power *= 10


def length_for(lengths: Sequence[int], share: float = 0.95) -> int:
    """The shortest --length, a multiple of 8, that ``share`` of the examples fit into whole."""
    kept = sorted(lengths)[min(len(lengths) - 1, int(share * len(lengths)))]
    return max(8, -(-kept // 8) * 8)
