"""``docs/training.md``: its table has the cells that are tested, its examples run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from quantlora.distributed.case import STRATEGIES
from tests.training import test_trainers
from tests.training.matrix import BACKENDS, COLUMNS, FEATURES, TRAINERS

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
TABLE = PAGE.split("## Trainer x backend x feature")[1].split("\n## ")[0]
ROWS = [
    [cell.strip() for cell in row.strip("|").split("|")]
    for row in re.findall(r"^\|.*\|$", TABLE, re.M)
]
HEAD, BODY = ROWS[0], {row[0]: row[1:] for row in ROWS[2:]}


def test_the_columns_are_those_of_the_tests() -> None:
    assert ["feature", *(f"{trainer}, {backend}" for trainer, backend in COLUMNS)] == HEAD
    assert len(COLUMNS) == len(TRAINERS) * len(BACKENDS)


def test_the_rows_are_the_features() -> None:
    assert list(BODY) == list(FEATURES)


@pytest.mark.parametrize("feature", FEATURES)
def test_a_row_says_which_cells_the_fast_suite_runs(feature: str) -> None:
    wanted = ["each time" if column in FEATURES[feature] else "yes" for column in COLUMNS]
    assert BODY[feature] == wanted


def test_every_feature_is_tested_for_every_column() -> None:
    tests = [one for name, one in vars(test_trainers).items() if name.startswith("test_")]
    parametrised = [one.pytestmark[0].args for one in tests if hasattr(one, "pytestmark")]
    assert len(parametrised) == len(FEATURES)
    for names, cells in parametrised:
        assert names == ("trainer", "backend")
        assert [cell.values for cell in cells] == list(COLUMNS)


def test_the_fast_suite_has_each_feature_and_each_column() -> None:
    fast = [column for columns in FEATURES.values() for column in columns]
    assert all(FEATURES.values())
    assert set(fast) == set(COLUMNS)


def test_every_strategy_is_on_the_page() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", PAGE.split("## Several processes")[1], re.M)
    assert sorted(listed) == sorted(STRATEGIES)
