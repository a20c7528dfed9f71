"""docs/operations.md is true: its tables are the code's, its examples run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import quantlora
from quantlora.combining.combine_layer import COMBINATION_TYPES
from quantlora.merging.merge_layer import MODES
from quantlora.testing.models import tiny_llama, tiny_tokenizer
from quantlora.testing.operation_suite import OPERATIONS

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()


def table(heading: str) -> list[list[str]]:
    """The rows of the first table under ``heading``, its header among them."""
    lines = PAGE.split(f"## {heading}\n")[1].splitlines()
    end = next((i for i, line in enumerate(lines) if line.startswith("## ")), len(lines))
    rows = [line for line in lines[:end] if line.startswith("|") and "---" not in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows]


def test_the_columns_are_the_backends() -> None:
    assert {cell.strip("`") for cell in table("Operation by backend")[0][1:]} == {
        *quantlora.registry().quantizers
    }


def test_the_rows_are_the_operations_of_the_suite() -> None:
    assert [row[0] for row in table("Operation by backend")[1:]] == list(OPERATIONS)


@pytest.mark.parametrize("backend", sorted(quantlora.registry().quantizers))
def test_a_cell_says_what_the_suite_expects(backend: str) -> None:
    header, *rows = table("Operation by backend")
    column = header.index(f"`{backend}`")
    reads_only = not quantlora.registry().quantizers[backend].can_quantize
    for row in rows:
        refused = OPERATIONS[row[0]].packs and reads_only
        assert row[column] == ("`MergeError`" if refused else "yes"), row[0]


def test_the_modes_of_merging_are_all_there() -> None:
    assert [row[0].strip('`"') for row in table("Merging")[1:]] == list(MODES)


def test_the_types_of_combination_are_all_there() -> None:
    named = [name for row in table("Weighted combination")[1:] for name in row[0].split(", ")]
    assert {name.strip("`") for name in named} == {*COMBINATION_TYPES}


LAYERS: dict[str, tuple[Any, str]] = {
    "float linear, `Conv1D`": (lambda: nn.Linear(8, 8), "auto"),
    "packed linear": (lambda: nn.Linear(64, 64), "normalfloat"),
    "embedding": (lambda: nn.Embedding(8, 8), "auto"),
    "convolution": (lambda: nn.Conv1d(8, 8, 3), "auto"),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "LoRA, rsLoRA": {"use_rslora": True},
    "`lora_bias`": {"lora_bias": True},
    "DoRA": {"use_dora": True},
    "merge": {},
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_layer_takes_the_variants_it_is_said_to(layer: str, variant: str) -> None:
    header, *rows = table("Variants and layers")
    cell = next(row for row in rows if row[0] == variant)[header.index(layer)]
    make, backend = LAYERS[layer]
    error = None
    try:
        model = quantlora.wrap(
            nn.Sequential(make()), backend=backend, target_modules=["0"], r=2, **VARIANTS[variant]
        )
        quantlora.merge(model) if variant == "merge" else None
    except quantlora.QuantloraError as raised:
        error = type(raised).__name__
    assert cell.split(";")[0] == ("yes" if error is None else f"`{error}`")


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {
        "quantlora": quantlora,
        "torch": torch,
        "model": tiny_llama(),
        "tokenizer": tiny_tokenizer(),
        "batch": {"input_ids": torch.arange(18).reshape(3, 6)},
    }
    other = quantlora.wrap(tiny_llama(), r=2, adapter_name="default")
    quantlora.save_adapter(other, "another-adapter")
    *blocks, swap = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    for block in blocks:
        exec(compile(block, "operations.md", "exec"), names)
    names["model"] = other
    exec(compile(swap, "operations.md", "exec"), names)
