"""The suites' own results: a plugin of pytest that notes what each operation test came to."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from quantlora.operations.catalogue import OPERATIONS
from quantlora.testing import OperationTests
from quantlora.units import dtype_name

ROOT = Path(__file__).parents[2]
#: The name of the test in `OperationTests` that runs one operation in one dtype.
TEST = "test_operation"
DONE = "yes"


@dataclass(frozen=True)
class Cell:
    """What one operation came to, in one dtype, in one suite.

    Args:
        column: the backend's name, or a variant's that the suite's adapters are of.
        answer: `DONE`, or the name of the error that is raised.
        reason: why it is not `DONE`.
    """

    column: str
    operation: str
    dtype: str
    answer: str
    reason: str = ""


@dataclass(eq=False)  # pytest keeps its plugins in sets
class Recorder:
    """Collects cells, and the suites that they are of; files of formats' suites only."""

    cells: list[Cell] = field(default_factory=list)
    suites: dict[type[OperationTests], OperationTests] = field(default_factory=dict)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if isinstance(_suite(item), OperationTests)]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        report = yield
        if report.when == "call" or report.outcome != "passed":
            self._note(item, call, report.outcome)
        return report

    def _note(self, item: Any, call: pytest.CallInfo[None], outcome: str) -> None:
        suite, given = _suite(item), item.callspec.params
        if outcome == "passed":
            self.suites.setdefault(type(suite), suite)
        answer, reason = _answer(suite, given, outcome, call)
        column, dtype = column_of(suite), dtype_name(given["dtype"])
        self.cells.append(Cell(column, given["name"], dtype, answer, reason))


def _suite(item: Any) -> Any:
    named = getattr(item, "originalname", "") == TEST
    return item.instance if named else None


def column_of(suite: OperationTests) -> str:
    """The variant whose adapters the suite is about, else its backend."""
    if not suite.adapter:
        return suite.quantizer
    return suite.trial().variant


def _answer(
    suite: OperationTests, given: dict[str, Any], outcome: str, call: pytest.CallInfo[None]
) -> tuple[str, str]:
    if outcome != "passed":
        text = str(call.excinfo.value) if call.excinfo is not None else ""
        return {"skipped": "not run"}.get(outcome, "fails"), " ".join(text.split())
    refusal = OPERATIONS[given["name"]].refusal(suite.trial(given["dtype"]))
    return (DONE, "") if refusal is None else (f"`{refusal.error.__name__}`", refusal.reason)


def suite_files() -> list[Path]:
    """Test files with a format's suite, or a variant's: the core's and the plugins'."""
    core = [ROOT / "tests/formats/test_float_format.py"]
    plugins = sorted((ROOT / "plugins").glob("*/tests/test_*.py"))
    words = ("QuantizerSuite", "OperationTests")
    return core + [file for file in plugins if any(w in file.read_text("utf-8") for w in words)]


def run_suites(choose: str = TEST, marked: str = "not slow") -> Recorder:
    """Run the operation tests of the suites.

    Args:
        choose: pytest's ``-k``.
        marked: its ``-m``; slow suites are further settings of formats that have a fast one.
    """
    recorder = Recorder()
    options = ["-q", "--tb=short", "-n", "0", "-p", "no:cacheprovider", "-W", "ignore"]
    code = pytest.main(
        [*options, "-k", choose, "-m", marked, *map(str, suite_files())], plugins=[recorder]
    )
    if code not in (0, 1):
        raise RuntimeError(f"pytest ended with {code}")
    return recorder
