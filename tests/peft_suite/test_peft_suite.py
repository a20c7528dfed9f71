"""PEFT's own tests over quantlora; they run where a developer names their folder."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.peft_suite.outcomes import ABSENT, LACKING, PASSED, REFUSED, counts, sorted_out
from tests.peft_suite.page import PAGE, page
from tests.peft_suite.run import SOURCE, run_suite, tests_folder

needs_tests = pytest.mark.skipif(tests_folder() is None, reason=f"{SOURCE} is not set")


def row(outcome: str, kind: str = "", text: str = "") -> dict[str, Any]:
    return {"test": "test_a.py::test", "outcome": outcome, "kind": kind, "text": text, "line": ""}


@pytest.mark.parametrize(
    ("given", "category"),
    [
        (row("passed"), PASSED),
        (row("skipped", "Skipped", "no GPU"), ABSENT),
        (row("failed", "OSError", "couldn't connect to 'https://huggingface.co'"), ABSENT),
        (row("failed", "AssertionError", "no adapter_model.bin"), REFUSED),
        (row("failed", "ConfigError", "unknown LoraConfig field 'velora_config'"), LACKING),
        (row("failed", "AssertionError", "0.1 > 0.01"), LACKING),
    ],
)
def test_an_outcome_has_its_class(given: dict[str, Any], category: str) -> None:
    assert sorted_out(given)[0] == category


def test_the_page_counts_every_test() -> None:
    rows = [row("passed"), row("failed", "ValueError", "wrong"), row("passed")]
    assert "| all | 2 | 1 | 0 | 0 |" in page(rows)


def said_to_pass() -> int:
    found = re.search(r"^\| all \| (\d+) ", PAGE.read_text("utf-8"), re.MULTILINE)
    assert found is not None
    return int(found.group(1))


def test_the_page_says_how_many_pass() -> None:
    assert said_to_pass() > 500


@needs_tests
def test_pefts_plain_lora_tests_pass() -> None:
    folder = tests_folder()
    assert folder is not None
    rows = run_suite(folder, ("test_custom_models.py",), "disable_adapters and MLP")
    assert counts(rows)[PASSED, ""] > 10


@needs_tests
@pytest.mark.slow
def test_as_many_of_pefts_tests_pass_as_the_page_says() -> None:
    folder = tests_folder()
    assert folder is not None
    assert counts(run_suite(folder))[PASSED, ""] >= said_to_pass()
