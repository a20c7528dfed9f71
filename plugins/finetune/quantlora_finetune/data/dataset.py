"""The examples of a run: to train on and to measure on, and how they are batched."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quantlora.errors import FinetuneError
from quantlora_finetune.data import demo_text
from quantlora_finetune.data.examples import IGNORED, Example, TrainingTokenizer, sequences_of
from quantlora_finetune.data.forms import column_map
from quantlora_finetune.data.sources import not_read, read_counted
from quantlora_finetune.options.finetune_options import FinetuneOptions

Collate = Callable[[Sequence[Example]], dict[str, Tensor]]


@dataclass(frozen=True)
class Dataset:
    """``train`` is trained on, ``held_out`` measured on; no example is in both.

    Of all that were read ``cut`` were longer than what is read at once, and lack their end;
    ``left_out`` were longer by their prompt alone, and ``empty`` rows have nothing to learn: they
    are in neither. ``unread_files`` are in the folder of the data, and not read.
    """

    name: str
    train: list[Example]
    held_out: list[Example]
    fingerprint: str
    cut: int = 0
    left_out: int = 0
    empty: int = 0
    unread_files: Sequence[str] = ()

    def facts(self) -> dict[str, Any]:
        """For the report."""
        return {
            "name": self.name,
            "train_examples": len(self.train),
            "train_tokens": sum(len(example.input_ids) for example in self.train),
            "cut_examples": self.cut,
            "left_out_examples": self.left_out,
            "empty_rows": self.empty,
            "unread_files": list(self.unread_files),
            "measured_examples": len(self.held_out),
            "measured_tokens": sum(example.learned for example in self.held_out),
        }


def load_dataset(options: FinetuneOptions, tokenizer: TrainingTokenizer) -> Dataset:
    """Read, tokenize and split what ``options`` name.

    Raises:
        FinetuneError: see `read_records`; or there is too little for one example of each part.
    """
    name = options.data or demo_text.NAME
    records, empty = read_counted(options.data, options.split, column_map(options.map))
    sequences = sequences_of(records, tokenizer, options.length)
    examples = [sequence for sequence in sequences if sequence.learned > 0]
    if len(examples) < 2:
        raise FinetuneError(
            f"{name} gives {len(examples)} examples of {options.length} tokens; at least 2 are "
            f"needed, one to train on and one to measure on. Use more text, or another --length."
        )
    count = max(1, round(len(examples) * options.held_out))
    return Dataset(
        name,
        train=examples[:-count],
        held_out=spread(examples[-count:], options.eval_examples),
        fingerprint=_fingerprint(examples),
        cut=sum(example.is_cut for example in examples),
        left_out=len(sequences) - len(examples),
        empty=empty,
        unread_files=not_read(options.data, options.split),
    )


def spread(examples: Sequence[Example], count: int) -> list[Example]:
    """At most ``count`` of them, evenly spaced."""
    step = max(1.0, len(examples) / count)
    return [examples[int(i * step)] for i in range(min(count, len(examples)))]


def _fingerprint(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr((example.given, example.input_ids)).encode())
    return digest.hexdigest()


def collate_with(padding: int) -> Collate:
    """A function that makes a batch: ids, mask and labels of shape ``(examples, longest)``."""

    def collate(examples: Sequence[Example]) -> dict[str, Tensor]:
        rows = [
            {
                "input_ids": (example.input_ids, padding),
                "attention_mask": ([1] * len(example.input_ids), 0),
                "labels": (example.labels, IGNORED),
            }
            for example in examples
        ]
        return {name: _padded([row[name] for row in rows]) for name in rows[0]}

    return collate


def _padded(rows: Sequence[tuple[list[int], int]]) -> Tensor:
    longest = max(len(values) for values, _ in rows)
    return torch.tensor([values + [fill] * (longest - len(values)) for values, fill in rows])


def to_device(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in batch.items()}
