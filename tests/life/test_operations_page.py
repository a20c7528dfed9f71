"""docs/operations.md is true: its tables are the code's, its examples run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import quantlora
from quantlora.combining.combine_layer import COMBINATION_TYPES
from quantlora.merging.merge_layer import MODES
from quantlora.operations.catalogue import OPERATIONS
from tests.tools.expert_models import Experts

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()


def table(heading: str) -> list[list[str]]:
    """The rows of the first table under ``heading``, its header among them."""
    lines = iter(PAGE.split(f"## {heading}\n")[1].splitlines())
    lines = takewhile(lambda line: line.startswith("|"), dropwhile(lambda x: x[:1] != "|", lines))
    rows = [line for line in lines if "---" not in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows]


def test_the_columns_are_the_backends() -> None:
    """The float format first; what follows the backends are variants that have a suite."""
    header, backends = table("Operation by backend")[0][1:], {*quantlora.registry().quantizers}
    assert {cell.strip("`") for cell in header[: len(backends)]} == backends
    assert all(cell.startswith("variant `") for cell in header[len(backends) :])


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


def test_a_variant_of_a_plugin_has_all_operations_but_other_variants() -> None:
    for row in table("Operation by backend")[1:]:
        assert row[-1] == ("`ConfigError`" if OPERATIONS[row[0]].varies else "yes"), row[0]


def test_the_modes_of_merging_are_all_there() -> None:
    assert [row[0].strip('`"') for row in table("Merging")[1:]] == list(MODES)


def test_the_types_of_combination_are_all_there() -> None:
    named = [name for row in table("Weighted combination")[1:] for name in row[0].split(", ")]
    assert {name.strip("`") for name in named} == {*COMBINATION_TYPES}


@dataclass
class Place:
    """One kind of place for an adapter: a layer, an input for it, and how it is targeted."""

    layer: Callable[[], nn.Module]
    x: Callable[[], Tensor]
    fields: dict[str, Any] = field(default_factory=lambda: {"target_modules": ["0"]})


PLACES = {
    "float linear, `Conv1D`": Place(lambda: nn.Linear(8, 8), lambda: torch.randn(2, 8)),
    "packed linear": Place(
        lambda: nn.Linear(64, 64),
        lambda: torch.randn(2, 64),
        {"target_modules": ["0"], "backend": "normalfloat"},
    ),
    "embedding": Place(lambda: nn.Embedding(8, 8), lambda: torch.arange(8).reshape(2, 4)),
    "convolution": Place(lambda: nn.Conv1d(8, 8, 3), lambda: torch.randn(2, 8, 5)),
    "parameters": Place(
        Experts, lambda: torch.randn(2, 6), {"target_modules": [], "target_parameters": ["0.w"]}
    ),
}


def mixed(model: nn.Module, x: Tensor) -> None:
    with quantlora.mixed_batch(model, ["default", "__base__"]):
        model(x)


def nothing(model: nn.Module, x: Tensor) -> None:
    model(x)


CASES: dict[str, tuple[dict[str, Any], Callable[[nn.Module, Tensor], Any]]] = {
    "LoRA, rsLoRA": ({"use_rslora": True}, nothing),
    "`lora_bias`": ({"lora_bias": True}, nothing),
    "DoRA": ({"use_dora": True}, nothing),
    "`bias`": ({"bias": "all"}, nothing),
    "merge": ({}, lambda model, x: quantlora.merge(model)),
    "`lora_dropout`": ({"lora_dropout": 0.1}, nothing),
    "mixed batch": ({}, mixed),
    "weighted combination": (
        {},
        lambda model, x: quantlora.add_weighted_adapter(model, ["default"], [0.5], "sum"),
    ),
    "hot swap": ({}, lambda model, x: quantlora.prepare_hot_swap(model, r=4)),
}


def test_the_table_of_layers_has_these_rows_and_columns() -> None:
    header, *rows = table("Variants and layers")
    assert header[1:] == list(PLACES)
    assert [row[0] for row in rows] == list(CASES)


@pytest.mark.parametrize("layer", PLACES)
@pytest.mark.parametrize("case", CASES)
def test_a_layer_takes_what_it_is_said_to(layer: str, case: str) -> None:
    header, *rows = table("Variants and layers")
    cell = next(row for row in rows if row[0] == case)[header.index(layer)]
    place, (fields, act) = PLACES[layer], CASES[case]
    error = None
    try:
        model = quantlora.wrap(nn.Sequential(place.layer()), r=2, **place.fields, **fields)
        act(model, place.x())
    except quantlora.QuantloraError as raised:
        error = type(raised).__name__
    assert cell.split(";")[0] == ("yes" if error is None else f"`{error}`")
