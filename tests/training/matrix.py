"""Trainer x backend x feature: which cells there are, and which of them the fast suite runs."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import product

import pytest

TRAINERS = ("Trainer", "SFTTrainer")
BACKENDS = ("float", "bitsandbytes_4bit", "bitsandbytes_8bit", "gptq", "normalfloat")
COLUMNS = tuple(product(TRAINERS, BACKENDS))

#: Features in the page's order, each with the columns whose cells are in the fast suite.
FEATURES: dict[str, tuple[tuple[str, str], ...]] = {
    "train": (("Trainer", "bitsandbytes_8bit"), ("SFTTrainer", "gptq")),
    "evaluate during training": (("SFTTrainer", "bitsandbytes_4bit"),),
    "checkpoint": (("Trainer", "bitsandbytes_4bit"),),
    "resume": (("Trainer", "gptq"), ("SFTTrainer", "normalfloat")),
    "load the best model": (("Trainer", "float"),),
    "save the model": (("SFTTrainer", "bitsandbytes_8bit"),),
    "gradient accumulation": (("Trainer", "normalfloat"),),
    "mixed precision (bf16)": (("SFTTrainer", "float"),),
    "gradient checkpointing, reentrant": (("Trainer", "bitsandbytes_4bit"),),
    "gradient checkpointing, non-reentrant": (("SFTTrainer", "bitsandbytes_4bit"),),
}

needs_gptq = pytest.mark.skipif(find_spec("gptqmodel") is None, reason="no gptqmodel here")


def cells(feature: str) -> pytest.MarkDecorator:
    """Runs a test of ``feature`` for every column; it takes ``trainer`` and ``backend``."""
    columns = [_cell(FEATURES[feature], column) for column in COLUMNS]
    return pytest.mark.parametrize(("trainer", "backend"), columns)


def _cell(fast: tuple[tuple[str, str], ...], column: tuple[str, str]) -> object:
    marks = [] if column in fast else [pytest.mark.slow]
    marks += [needs_gptq] if column[1] == "gptq" else []
    return pytest.param(*column, marks=marks, id="-".join(column))
