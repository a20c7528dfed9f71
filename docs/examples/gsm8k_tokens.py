"""From problems to batches: question and answer each cut to its length, only the answer learned."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from gsm8k import Problem
from torch import Tensor

#: Not counted in the loss (torch's ``ignore_index``).
IGNORED = -100


def source_ids(problem: Problem, tokenizer: Any, options: argparse.Namespace) -> list[int]:
    """BOS and the question, at most ``max_source_length`` tokens."""
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return [*bos, *_ids(tokenizer, problem.prompt)][: options.max_source_length]


def target_ids(problem: Problem, tokenizer: Any, options: argparse.Namespace) -> list[int]:
    """The answer and EOS, at most ``max_target_length`` tokens."""
    whole = [*_ids(tokenizer, problem.target), tokenizer.eos_token_id]
    return whole[: options.max_target_length]


def encode(problem: Problem, tokenizer: Any, options: argparse.Namespace) -> dict[str, list[int]]:
    source = source_ids(problem, tokenizer, options)
    target = target_ids(problem, tokenizer, options)
    return {"input_ids": source + target, "labels": [IGNORED] * len(source) + target}


def collate(
    rows: Sequence[dict[str, list[int]]], padding: int, options: argparse.Namespace
) -> dict[str, Tensor]:
    """A batch ``(rows, longest)``, filled up at the end."""
    longest = max(len(row["input_ids"]) for row in rows)
    if options.pad_to_max_length:
        longest = options.max_source_length + options.max_target_length
    unlearned = IGNORED if options.ignore_pad_token_for_loss else padding

    def filled(values: list[int], fill: int) -> list[int]:
        return values + [fill] * (longest - len(values))

    return {
        "input_ids": torch.tensor([filled(row["input_ids"], padding) for row in rows]),
        "attention_mask": torch.tensor([filled([1] * len(row["input_ids"]), 0) for row in rows]),
        "labels": torch.tensor([filled(row["labels"], unlearned) for row in rows]),
    }


def _ids(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return found
