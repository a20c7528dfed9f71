"""The trainers' tests pass with PEFT not installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TESTS = str(ROOT / "tests" / "training" / "test_trainers.py")


@pytest.mark.slow
def test_every_cell_passes_without_peft(run_python: Any, tmp_path: Path) -> None:
    plugin = ("-p", "tests.training.without_peft", "-p", "no:cacheprovider")
    every = ("-m", "slow or not slow", "--basetemp", str(tmp_path / "own"))
    run = run_python("-m", "pytest", *plugin, *every, TESTS, path=[ROOT], check=False)
    assert run.returncode == 0, run.stdout[-3000:]
    assert " passed" in run.stdout


def test_peft_is_hidden_by_then(run_python: Any) -> None:
    script = (
        "import tests.training.without_peft, transformers.utils as utils; "
        "assert not utils.is_peft_available()"
    )
    run_python("-c", script, path=[ROOT])
