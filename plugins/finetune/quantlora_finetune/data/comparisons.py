"""The rows of trainers that compare answers: pairs, judged answers, and tasks with a reward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantlora.errors import FinetuneError
from quantlora_finetune.data.examples import Example, TrainingTokenizer, prompt_ids, sequences_of
from quantlora_finetune.data.messages import with_system
from quantlora_finetune.data.records import Answered, Labelled, Preference, Record, Task
from quantlora_finetune.options.choices import TrainerName


@dataclass(frozen=True)
class Pair:
    """A better and a worse answer, each behind the same ``prompt`` tokens."""

    chosen: Example
    rejected: Example

    @property
    def prompt(self) -> int:
        """Tokens that both begin with, at most those of their prompts."""
        pairs = zip(self.chosen.input_ids, self.rejected.input_ids, strict=False)
        least = min(self.chosen.given, self.rejected.given)
        return min(next((i for i, (a, b) in enumerate(pairs) if a != b), least), least)

    @property
    def input_ids(self) -> list[int]:
        """Of the longer one: what the row takes."""
        return max(self.chosen.input_ids, self.rejected.input_ids, key=len)

    @property
    def measured(self) -> list[Example]:
        return [self.chosen]


@dataclass(frozen=True)
class Judged:
    """An answer that is good, or is not."""

    example: Example
    is_good: bool

    @property
    def input_ids(self) -> list[int]:
        return self.example.input_ids

    @property
    def measured(self) -> list[Example]:
        return [self.example] if self.is_good else []


@dataclass(frozen=True)
class Prompted:
    """A prompt, as TRL takes it, and the row's columns for whoever rewards the answer."""

    prompt: str | list[dict[str, Any]]
    columns: Mapping[str, Any]
    example: Example

    @property
    def input_ids(self) -> list[int]:
        return self.example.input_ids

    @property
    def measured(self) -> list[Example]:
        return [self.example]


Compared = Pair | Judged | Prompted
_MakeRows = Callable[[Record, TrainingTokenizer, int], Iterator[Compared]]


def compared_rows(
    records: Sequence[Record], tokenizer: TrainingTokenizer, trainer: TrainerName, length: int
) -> list[Compared]:
    """What ``trainer`` trains on, cut to ``length`` tokens; without what its prompt fills.

    Raises:
        FinetuneError: a record is of another kind than the trainer compares.
    """
    make = _ROWS[trainer]
    return [row for record in records for row in make(record, tokenizer, length)]


def _pairs(record: Record, tokenizer: TrainingTokenizer, length: int) -> Iterator[Pair]:
    if not isinstance(record, Preference):
        raise FinetuneError(
            "--trainer dpo and orpo compare answers: the data needs a chosen and a rejected one in "
            "each row (`prompt`, `chosen`, `rejected`; --map names other columns)."
        )
    pair = Pair(*(_answer(each, tokenizer, length) for each in (record.chosen, record.rejected)))
    if min(pair.chosen.learned, pair.rejected.learned) > 0:
        yield pair


def _judged(record: Record, tokenizer: TrainingTokenizer, length: int) -> Iterator[Judged]:
    match record:
        case Preference(chosen, rejected):
            answers = [(chosen, True), (rejected, False)]
        case Labelled(answer, is_good):
            answers = [(answer, is_good)]
        case _:
            raise FinetuneError(
                "--trainer kto judges answers: the data needs `prompt`, `completion` and a `label` "
                "that is true or false, or a chosen and a rejected answer, in each row."
            )
    for answer, is_good in answers:
        example = _answer(answer, tokenizer, length)
        if example.learned > 0:
            yield Judged(example, is_good)


def _prompted(record: Record, tokenizer: TrainingTokenizer, length: int) -> Iterator[Prompted]:
    assert isinstance(record, Task)
    prompt: str | list[dict[str, Any]]
    if isinstance(record.prompt, str):
        prompt = record.prompt
    else:
        prompt = [dict(turn) for turn in with_system(record.prompt, tokenizer.system)]
    ids = prompt_ids(prompt, tokenizer)
    if 1 < len(ids) < length:
        yield Prompted(prompt, record.columns, Example(ids, len(ids), learns_prompt=True))


def _answer(answer: Answered, tokenizer: TrainingTokenizer, length: int) -> Example:
    """The last answer of ``answer``."""
    found = sequences_of([answer], tokenizer, length)
    return found[-1] if found else Example([], 0)


_ROWS: dict[TrainerName, _MakeRows] = {
    TrainerName.DPO: _pairs,
    TrainerName.ORPO: _pairs,
    TrainerName.KTO: _judged,
    TrainerName.GRPO: _prompted,
}
