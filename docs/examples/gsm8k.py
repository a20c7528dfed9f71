"""GSM8K (Cobbe et al. 2021, arXiv:2110.14168): its rows, its answers, and when one is right."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

#: Stands before the final number in the data set's answers.
MARK = "####"
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")


@dataclass(frozen=True)
class Problem:
    """A question, and its answer: the steps, then ``#### `` and a number."""

    question: str
    answer: str

    @property
    def prompt(self) -> str:
        return f"Question: {self.question.strip()}\nAnswer:"

    @property
    def target(self) -> str:
        return f" {self.answer.strip()}"


def read_file(file: str | Path) -> list[Problem]:
    """The problems of a JSONL file in the data set's own form, ``question`` and ``answer``."""
    lines = Path(file).read_text("utf-8").splitlines()
    found = [
        problem_of(json.loads(line), f"{file}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not found:
        raise ValueError(f"{file}: there is no problem in it.")
    return found


def read_hub(name: str, config: str, split: str) -> list[Problem]:
    """The same from the hub; ``pip install datasets``."""
    from datasets import load_dataset

    rows = load_dataset(name, config, split=split)
    return [problem_of(row, f"{name}, row {number}") for number, row in enumerate(rows)]


def problem_of(row: Any, place: str) -> Problem:
    """A row as a problem; an error names its ``place`` where it is none."""
    if not isinstance(row, dict) or not {"question", "answer"} <= set(row):
        raise ValueError(f'{place}: expected an object with "question" and "answer".')
    if final_answer(row["answer"]) is None:
        raise ValueError(f'{place}: the answer has no number after "{MARK}".')
    return Problem(row["question"], row["answer"])


def final_answer(text: str) -> Decimal | None:
    """The number after the mark; in a text without a mark, its last number; None if there is none.

    ``$1,000.50`` is 1000.5, and 18.0 is 18: answers are compared as numbers.
    """
    before, mark, after = text.partition(MARK)
    found = _NUMBER.findall(after if mark else before)
    if not found:
        return None
    return Decimal((found[0] if mark else found[-1]).replace(",", ""))


def exact_match(texts: Sequence[str], problems: Iterable[Problem]) -> list[bool]:
    """For each generated text, whether it comes to the problem's number."""
    return [
        final_answer(text) == final_answer(problem.answer)
        for text, problem in zip(texts, problems, strict=True)
    ]
