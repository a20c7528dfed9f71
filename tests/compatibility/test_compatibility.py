"""The compatibility table: a dozen families here, all of them with ``-m slow``."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.compatibility.families import SMOKE, classes, families
from tests.compatibility.isolation import run_each
from tests.compatibility.page import PAGE, page
from tests.compatibility.tiny_config import tiny_config
from tests.compatibility.trial import QUESTIONS

Rows = dict[str, dict[str, Any]]


def run_command(run_python: Any, folder: Path, *names: str) -> Rows:
    """``python -m tests.compatibility``, and the rows it kept."""
    rows, root = folder / "rows.jsonl", Path(__file__).parents[2]
    run_python("-m", "tests.compatibility", *names, "--rows", str(rows), path=[root])
    return {row["family"]: row for row in map(json.loads, rows.read_text().splitlines())}


@pytest.fixture(scope="module")
def smoke(run_python: Any, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    return run_command(run_python, tmp_path_factory.mktemp("smoke"), *SMOKE)


@pytest.mark.parametrize("family", SMOKE)
def test_a_family_answers_as_the_page_says(family: str, smoke: Rows) -> None:
    start = f"| {family} |"
    said = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith(start)]
    assert all(line in page([smoke[family]]).splitlines() for line in said)


@pytest.mark.parametrize("family", SMOKE)
def test_a_family_is_wrapped_merged_and_exported(family: str, smoke: Rows) -> None:
    row = smoke[family]
    assert [row[one] for one in ("wraps", "merged", "exports")] == ["yes"] * 3


def crash(name: str) -> dict[str, Any]:
    if name == "crashing":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "endless":
        time.sleep(60)
    return {"family": name, **dict.fromkeys(QUESTIONS, "yes")}


def test_a_crash_is_a_hole_and_the_next_family_is_tried() -> None:
    crashed, next_one = run_each(["crashing", "good"], crash)
    assert crashed["died"] == "the process ended with signal 11"
    assert next_one["wraps"] == "yes"


def test_a_family_without_end_is_a_hole() -> None:
    (row,) = run_each(["endless"], crash, patience=0.2)
    assert row["died"].startswith("no answer within")


def test_every_hole_has_its_reason_on_the_page() -> None:
    rows = [
        {"family": "a", "model": "A", **dict.fromkeys(QUESTIONS, "yes"), "peft": "error 0.5"},
        {"family": "b", "died": "the process ended with signal 11"},
    ]
    text = page(rows)
    assert "| a | equals PEFT | error 0.5 |" in text
    assert "| b | all | the process ended with signal 11 |" in text


def test_the_page_has_over_a_hundred_families_with_four_times_yes() -> None:
    lines = PAGE.read_text("utf-8").splitlines()
    assert sum(line.endswith("| yes | yes | yes | yes |") for line in lines) > 100


def test_a_tiny_config_is_tiny() -> None:
    config_class, model_class = classes("llama")
    model: Any = model_class(tiny_config(config_class))
    assert sum(one.numel() for one in model.parameters()) < 200_000


@pytest.mark.slow
def test_no_family_has_lost_a_yes(run_python: Any, tmp_path: Path) -> None:
    """In pieces, for one process may take five minutes in `run_python`."""
    names = list(families())
    rows: Rows = {}
    for start in range(0, len(names), 30):
        rows |= run_command(run_python, tmp_path, *names[start : start + 30])
    found = set(page(rows.values()).splitlines())
    said = PAGE.read_text("utf-8").splitlines()
    assert [line for line in said if line.endswith("| yes |") and line not in found] == []
