"""The examples of a run: to train on and to measure on, and how they are batched."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from quantlora.errors import FinetuneError
from quantlora_finetune.data import demo_text
from quantlora_finetune.data.comparisons import Compared, Pair, compared_rows
from quantlora_finetune.data.examples import IGNORED, Example, TrainingTokenizer
from quantlora_finetune.data.forms import column_map
from quantlora_finetune.data.packing import PackedRow, packed
from quantlora_finetune.data.records import Labelled, Preference, Record
from quantlora_finetune.data.sources import not_read, read_counted, read_records
from quantlora_finetune.data.splits import Split, check_parts, split_of_data, split_rows
from quantlora_finetune.data.template import check_conversations
from quantlora_finetune.options.choices import TrainerName
from quantlora_finetune.options.finetune_options import FinetuneOptions

#: What a trainer takes as one: an example, several of them packed, or answers to compare.
Row = Example | PackedRow | Compared
Collate = Callable[[Sequence[Any]], dict[str, Any]]
T = TypeVar("T")
#: Of the tokens of a batch, also where answers are beside one another.
_MASKS = ("attention_mask", "chosen_attention_mask", "rejected_attention_mask")


@dataclass(frozen=True)
class Dataset:
    """``train`` is trained on, ``held_out`` measured on; no example is in both.

    Of all that were read ``cut`` were longer than what is read at once, and lack their end;
    ``left_out`` were longer by their prompt alone, and ``empty`` rows have nothing to learn: they
    are in neither. ``unread_files`` are in the folder of the data, and not read. ``train`` has
    several examples in a row where they are packed. ``compared`` are the rows that ``held_out`` is
    from, where the trainer compares answers.
    """

    name: str
    train: Sequence[Row]
    held_out: list[Example]
    fingerprint: str
    cut: int = 0
    left_out: int = 0
    empty: int = 0
    unread_files: Sequence[str] = ()
    held_out_from: str = ""
    compared: Sequence[Compared] = ()

    @property
    def longest(self) -> int:
        """Tokens of the longest row that is trained on."""
        return max(len(row.input_ids) for row in self.train)

    def facts(self) -> dict[str, Any]:
        """For the report."""
        return {
            "name": self.name,
            "train_examples": sum(map(_count, self.train)),
            "train_rows": len(self.train),
            "train_tokens": sum(len(example.input_ids) for example in self.train),
            "cut_examples": self.cut,
            "left_out_examples": self.left_out,
            "empty_rows": self.empty,
            "unread_files": list(self.unread_files),
            "longest_row": self.longest,
            "held_out": self.held_out_from,
            "measured_examples": len(self.held_out),
            "measured_tokens": sum(example.learned for example in self.held_out),
        }


def load_dataset(options: FinetuneOptions, tokenizer: TrainingTokenizer) -> Dataset:
    """Read, tokenize and split what ``options`` name.

    Raises:
        FinetuneError: see `read_records`; or there is too little for one example of each part.
    """
    if options.trainer.compares:
        return _compared_dataset(options, tokenizer)
    name = options.data or demo_text.NAME
    records, reasons = read_counted(options.data, options.split, column_map(options.map))
    check_conversations(records, options)
    check_one_answer(records)
    whole = split_of_data(records, tokenizer, options, options.seed)
    sequences = [*whole.train, *whole.held_out]
    split = Split(_to_learn(whole.train), _to_learn(whole.held_out))
    check_parts(name, split.train, split.held_out, options.length)
    examples = [*split.train, *split.held_out]
    return Dataset(
        name,
        train=packed(split.train, options.length) if options.packing else split.train,
        held_out=spread(split.held_out, options.eval_examples),
        fingerprint=_fingerprint(examples),
        cut=sum(example.is_cut for example in examples),
        left_out=len(sequences) - len(examples),
        empty=reasons.total(),
        unread_files=not_read(options.data, options.split),
        held_out_from=_held_out_from(options),
    )


def _compared_dataset(options: FinetuneOptions, tokenizer: TrainingTokenizer) -> Dataset:
    name, tasks = options.data or demo_text.NAME, options.trainer is TrainerName.GRPO
    columns = column_map(options.map)
    records, reasons = read_counted(options.data, options.split, columns, tasks)
    rows = compared_rows(records, tokenizer, options.trainer, options.length)
    if options.eval_data is None:
        train, held_out = split_rows(rows, options, options.seed)
    else:
        others = read_records(options.eval_data, options.split, columns, tasks)
        train = rows
        held_out = compared_rows(others, tokenizer, options.trainer, options.length)
    measured = [example for row in held_out for example in row.measured]
    check_parts(name, train, measured, options.length)
    examples = [example for row in (*train, *held_out) for example in _examples_in(row)]
    return Dataset(
        name,
        train=train,
        held_out=spread(measured, options.eval_examples),
        fingerprint=_fingerprint(examples),
        cut=sum(example.is_cut for example in examples),
        left_out=_left_out(records, rows, options.trainer),
        empty=reasons.total(),
        unread_files=not_read(options.data, options.split),
        held_out_from=_held_out_from(options),
        compared=spread(held_out, options.eval_examples),
    )


def _left_out(records: Sequence[Record], rows: Sequence[Compared], trainer: TrainerName) -> int:
    pairs = sum(isinstance(record, Preference) for record in records)
    wanted = len(records) + (pairs if trainer is TrainerName.KTO else 0)
    return wanted - len(rows)


def _examples_in(row: Compared) -> list[Example]:
    return [row.chosen, row.rejected] if isinstance(row, Pair) else [row.example]


def check_one_answer(records: Sequence[Record]) -> None:
    """Raise `FinetuneError` where rows say that some answers are not to be learned."""
    if any(isinstance(record, Preference) for record in records):
        raise FinetuneError(
            "the data has a chosen and a rejected answer in a row: learn from both by "
            "--trainer dpo (or orpo, kto), or the chosen ones alone by --map completion=chosen."
        )
    if any(isinstance(record, Labelled) for record in records):
        raise FinetuneError(
            "the data has a `label` that says whether an answer is good: learn from it by "
            "--trainer kto, or leave the column out to learn every answer."
        )


def _to_learn(sequences: Sequence[Example]) -> list[Example]:
    return [sequence for sequence in sequences if sequence.learned > 0]


def _held_out_from(options: FinetuneOptions) -> str:
    if options.eval_data is not None:
        return options.eval_data
    if options.validation is not None:
        return f"{options.validation:.1%} of the rows, drawn by --seed {options.seed}"
    return f"the last {options.held_out:.1%} of the data"


def spread(examples: Sequence[T], count: int) -> list[T]:
    """At most ``count`` of them, evenly spaced."""
    step = max(1.0, len(examples) / count)
    return [examples[int(i * step)] for i in range(min(count, len(examples)))]


def _fingerprint(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr((example.given, example.input_ids)).encode())
    return digest.hexdigest()


def _count(row: Row) -> int:
    return len(row.examples) if isinstance(row, PackedRow) else 1


def collate_with(padding: int) -> Collate:
    """A function that makes a batch: ids, mask and labels of shape ``(examples, longest)``.

    Packed rows have position ids in place of the mask, 0 for all padding; see `packing`.
    """

    def collate(rows: Sequence[Example | PackedRow]) -> dict[str, Any]:
        batch: dict[str, Any] = {
            "input_ids": _padded([row.input_ids for row in rows], padding),
            "labels": _padded([row.labels for row in rows], IGNORED),
        }
        positions = [row.position_ids for row in rows if isinstance(row, PackedRow)]
        if positions:
            return batch | {"position_ids": _padded(positions, 0), "use_cache": False}
        masks = [[1] * len(row.input_ids) for row in rows]
        return batch | {"attention_mask": _padded(masks, 0)}

    return collate


def _padded(rows: Sequence[list[int]], fill: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([values + [fill] * (longest - len(values)) for values in rows])


def tokens_in(batch: Mapping[str, Any]) -> Tensor:
    """How many tokens of a batch are no padding, on its device."""
    masks = [batch[name] for name in _MASKS if name in batch]
    if masks:
        return torch.stack([mask.sum() for mask in masks]).sum()
    positions: Tensor = batch["position_ids"]  # each example goes 0, 1, ...: padding is 0 only
    return (positions > 0).sum() + (positions == 1).sum()


def to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }
