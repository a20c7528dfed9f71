"""That a benchmark stops at a wrong number, compares round by round, and writes what it found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import quantlora
from tests.benchmarks import experts_arms, experts_reference
from tests.benchmarks.arms import SMOKE
from tests.benchmarks.machine import machine
from tests.benchmarks.page import write_table
from tests.benchmarks.picture import plot
from tests.benchmarks.reference import WrongNumbersError, check
from tests.benchmarks.timing import interleaved, timing


def found(value: float = 2.0) -> dict[str, Any]:
    row = {"case": "a case", "arm": "quantlora", "value": value, "ratio": 0.5, "error": 1e-3}
    result = {"title": "A title", "unit": "ms", "reference": "peft", "rows": [row]}
    return {"machine": machine("cpu"), "result": result}


def test_an_arm_that_is_off_stops_the_run() -> None:
    with pytest.raises(WrongNumbersError, match=r"peft: off by 1\.00e-01"):
        check("peft", torch.full((4,), 1.1), torch.ones(4).double(), 0.05)


def test_experts_whose_scale_is_wrong_stop_the_run() -> None:
    model = experts_arms.arm("quantlora", SMOKE, "float", "cpu", experts=4)
    given = experts_arms.inputs(SMOKE, "cpu", 8, experts=4)
    assert experts_reference.error("quantlora", model, given) < 1e-4
    next(layer for _, layer in quantlora.lora_layers(model)).scaling["default"] *= 1.5
    with pytest.raises(WrongNumbersError, match="quantlora: off by"):
        experts_reference.error("quantlora", model, given)


def test_every_arm_runs_once_in_a_round_and_in_another_order_in_the_next() -> None:
    calls: list[str] = []
    arms = {name: lambda name=name: calls.append(name) for name in "abc"}
    interleaved(arms, "a", rounds=2)
    assert ["".join(calls[i : i + 3]) for i in (0, 3, 6)] == ["abc", "bca", "cab"]


def test_ratios_are_taken_within_a_round() -> None:
    """The machine is twice as slow in the second round: the ratio is the same."""
    own = timing([1.0, 2.0], [2.0, 4.0])
    assert (own.ratio, own.ratio_low, own.ratio_high) == (0.5, 0.5, 0.5)


def test_a_table_replaces_the_one_of_its_suite_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n\n<!-- measured: decode -->\nold\n<!-- end -->\n\nafter\n")
    write_table(page, "decode", found())
    write_table(page, "step", found(3.0))
    text = page.read_text()
    assert "old" not in text
    assert text.startswith("before")
    assert "| a case | quantlora | 2.00 | 0.50 |" in text.partition("after")[0]
    assert "| a case | quantlora | 3.00 | 0.50 |" in text.partition("after")[2]


def test_the_machine_is_described(tmp_path: Path) -> None:
    facts = machine("cpu")
    assert facts["processor"]
    assert facts["torch"] == torch.__version__
    plot(tmp_path / "plot.png", found())
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_growth_is_written_as_exponents_and_drawn_as_lines(tmp_path: Path) -> None:
    rows = [
        {
            "case": "c",
            "arm": "quantlora",
            "size": n,
            "value": float(n),
            "ratio": 1.0,
            "exponent": 1.0,
        }
        for n in (16, 32)
    ]
    own = found()
    own["result"]["rows"] = rows
    page = tmp_path / "page.md"
    page.write_text("")
    write_table(page, "scale", own)
    assert "| c | 1.00 | 16.00 ms at 16 | 32.00 ms at 32 |" in page.read_text()
    plot(tmp_path / "plot.png", own)
    assert (tmp_path / "plot.png").exists()
