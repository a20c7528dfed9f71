"""A tiny model and text, and the command run in this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner, Result

from quantlora.cli import app
from quantlora.testing.models import save_tiny_llama
from tests.conftest import run_python as run_python

SENTENCE = "the quick brown fox jumps over the lazy dog. "

#: Small enough for a second, and float32: the same bits on every machine.
QUICK = [
    *("--length", "32", "--steps", "12", "--batch-size", "2", "--lr", "0.01"),
    *("--save-every", "4", "--eval-examples", "8", "--dtype", "float32"),
]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(SENTENCE * 60)
    return file


@pytest.fixture
def arguments(tiny: Path, text: Path, tmp_path: Path) -> list[str]:
    """A quick run on a float model; later options win over these."""
    return quick_arguments(tiny, text, tmp_path / "run")


def quick_arguments(tiny: Path, text: Path, output: Path) -> list[str]:
    places = ["--model", str(tiny), "--data", str(text), "--output", str(output)]
    return ["finetune", *places, "--backend", "float", *QUICK]


class FinishedRun(NamedTuple):
    folder: Path
    output: str


@pytest.fixture(scope="session")
def finished(tiny: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """One quick run for all tests that only read what it has left."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    result = CliRunner().invoke(app, quick_arguments(tiny, text, folder))
    assert result.exit_code == 0, result.output
    return FinishedRun(folder, result.output)


@pytest.fixture
def run() -> Callable[..., Result]:
    return lambda *arguments: CliRunner().invoke(app, [str(one) for one in arguments])


@pytest.fixture
def finished_folder(finished: FinishedRun, tmp_path: Path) -> Path:
    """A copy of the finished run in ``tmp_path / "run"``, to change."""
    return Path(shutil.copytree(finished.folder, tmp_path / "run"))


def report_in(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report
