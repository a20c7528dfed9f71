"""The generated part of docs/operations.md: every hole has a reason, every backend was run."""

from __future__ import annotations

import pytest

from quantlora import registry
from quantlora.operations.catalogue import OPERATIONS
from tests.operations_table.__main__ import main
from tests.operations_table.abilities import ABILITIES
from tests.operations_table.page import BEGIN, END, PAGE, from_cells, holes, table
from tests.operations_table.recorder import Cell

PART = PAGE.read_text("utf-8").partition(BEGIN)[2].partition(END)[0]


def rows(head: str) -> list[list[str]]:
    """Cells of the table that begins with ``head``, its header first."""
    lines = PART[PART.index(f"| {head} |") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_page_has_every_backend_and_every_operation() -> None:
    header, _, *body = rows("operation")
    assert [row[0] for row in body] == list(OPERATIONS)
    assert {*registry().quantizers} <= {cell.strip("`") for cell in header[1:]}


def test_the_page_asks_every_backend_what_it_can_besides() -> None:
    header, _, *body = rows("format")
    assert [row[0] for row in body] == list(ABILITIES)
    assert {cell.strip("`") for cell in header[1:]} == {*registry().quantizers}


@pytest.mark.parametrize("head", ["operation", "format"])
def test_nothing_fails_or_was_not_run(head: str) -> None:
    cells = [cell for row in rows(head)[2:] for cell in row[1:]]
    assert cells
    assert not {"fails", "not run"} & {*cells}


def test_every_hole_of_the_page_has_its_reason() -> None:
    reasons = {(row[0], row[1]): row[3] for row in rows("")[2:]}
    for head in ("operation", "format"):
        for row in rows(head)[2:]:
            for answer in {*row[1:]} - {"yes"}:
                found = [why for (name, a), why in reasons.items() if name == row[0]]
                assert found, (row[0], answer)
                assert all(found)


def test_a_cell_is_what_its_dtypes_agree_on() -> None:
    cells = [Cell("float", "add", "float32", "yes"), Cell("float", "add", "float16", "fails", "x")]
    results = from_cells(cells)
    assert "| add | in 1 of 2 |" in table("operation", ["add"], ["float"], results)
    assert "| add | fails | `float` | x |" in holes(results)


@pytest.mark.slow
def test_the_command_runs(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["operations_table", "--smoke"])
    assert main() == 0
    assert 'merge(mode="requantize")' in capsys.readouterr().out
