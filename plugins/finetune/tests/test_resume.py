"""Interrupted at any moment, a run goes on where its last checkpoint is, to the same result."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from quantlora_finetune.run.run_folder import RunFolder
from quantlora_finetune.training.checkpoints import last_checkpoint, remove_incomplete
from safetensors.torch import load_file, save_file

from quantlora.errors import FinetuneError

from .conftest import report_in

STEPS = ("--steps", "60", "--save-every", "5", "--dropout", "0.1")


class _CtrlC:
    """Presses Ctrl-C once ``path`` is there; within a ``with`` block only.

    With Python's own handler within the block: a shell starts background jobs with Ctrl-C ignored.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.over = path, threading.Event()
        self.thread = threading.Thread(target=self._press)

    def _press(self) -> None:
        while not self.path.exists():
            if self.over.wait(0.001):
                return
        os.kill(os.getpid(), signal.SIGINT)

    def __enter__(self) -> None:
        self.handler = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()
        signal.signal(signal.SIGINT, self.handler)


def _weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def _losses(folder: Path) -> list[float]:
    return [one["loss"] for one in report_in(folder)["training"]["steps"]]


@pytest.fixture
def interrupted(run, arguments, tmp_path):
    """The result of a run that Ctrl-C has ended after its first checkpoint, in ``run``."""
    with _CtrlC(tmp_path / "run" / "checkpoints" / "checkpoint-5" / "complete"):
        result = run(*arguments, *STEPS)
    assert result.exit_code == 130, result.output
    return result


def test_ctrl_c_says_what_is_safe_and_how_to_go_on(interrupted, tmp_path):
    done = last_checkpoint(tmp_path / "run" / "checkpoints").name.removeprefix("checkpoint-")
    assert f"holds the first {done} steps" in interrupted.output
    assert f"quantlora finetune --resume --output {tmp_path / 'run'}" in interrupted.output
    assert "Traceback" not in interrupted.output


def test_a_resumed_run_ends_with_the_bits_of_the_unbroken_one(
    interrupted, run, arguments, tmp_path
):
    result = run("finetune", "--resume", "--output", tmp_path / "run")
    assert result.exit_code == 0, result.output
    run(*arguments, *STEPS, "--output", tmp_path / "unbroken")
    assert _losses(tmp_path / "run") == _losses(tmp_path / "unbroken")
    assert _weights(tmp_path / "run") == _weights(tmp_path / "unbroken")
    before, after = (report_in(tmp_path / one)["perplexity"] for one in ("run", "unbroken"))
    assert before == after


@pytest.mark.slow
def test_a_killed_run_ends_with_the_bits_of_the_unbroken_one(run, arguments, tmp_path):
    program = "from quantlora.cli import app; app()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments, *STEPS], stdout=subprocess.DEVNULL
    )
    place = tmp_path / "run" / "checkpoints" / "checkpoint-10"
    while not place.exists() and process.poll() is None:
        time.sleep(0.001)
    process.kill()  # while the checkpoint is being written
    assert process.wait() == -signal.SIGKILL
    assert run("finetune", "--resume", "--output", tmp_path / "run").exit_code == 0
    run(*arguments, *STEPS, "--output", tmp_path / "unbroken")
    assert _weights(tmp_path / "run") == _weights(tmp_path / "unbroken")


def test_a_partly_written_checkpoint_is_never_chosen(tmp_path):
    for name in ("checkpoint-5", "checkpoint-10", "checkpoint-15"):
        (tmp_path / name).mkdir()
    for name in ("checkpoint-5", "checkpoint-10"):
        (tmp_path / name / "complete").touch()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    remove_incomplete(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-5"]


@pytest.mark.slow
def test_a_run_killed_while_saving_resumes_from_the_checkpoint_before(
    run, finished_folder, tmp_path
):
    weights = _weights(tmp_path / "run")
    _make_unfinished(tmp_path / "run")
    result = run("finetune", "--resume", "--output", tmp_path / "run")
    assert "Going on after step 8 of 12" in result.output, result.output
    assert _weights(tmp_path / "run") == weights


def _make_unfinished(folder: Path) -> None:
    """As a kill during the last save leaves it."""
    last = folder / "checkpoints" / "checkpoint-12"
    for name in ("complete", "trainer_state.json", "optimizer.pt"):
        (last / name).unlink()
    for path in folder.iterdir():
        if path.name not in ("run.json", "checkpoints"):
            path.unlink()


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_starts_anew(run, finished_folder, tmp_path):
    weights = _weights(tmp_path / "run")
    _make_unfinished(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    result = run("finetune", "--resume", "--output", tmp_path / "run")
    assert "Going on after step 0 of 12" in result.output, result.output
    assert _weights(tmp_path / "run") == weights


def test_a_run_killed_after_its_last_step_only_writes_its_report(run, finished_folder, tmp_path):
    before = report_in(tmp_path / "run")
    weights = _weights(tmp_path / "run")
    for name in ("report.json", "adapter_model.safetensors", "loss.png", "README.md"):
        (tmp_path / "run" / name).unlink()
    assert run("finetune", "--resume", "--output", tmp_path / "run").exit_code == 0
    assert _weights(tmp_path / "run") == weights
    after = report_in(tmp_path / "run")
    assert after["perplexity"] == before["perplexity"]
    assert after["training"]["steps"] == before["training"]["steps"]


def test_a_finished_run_is_left_alone(run, finished_folder, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    result = run("finetune", "--resume", "--output", tmp_path / "run")
    assert (result.exit_code, "has its 12 steps" in result.output) == (0, True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


@pytest.mark.slow
def test_a_finished_run_can_be_trained_on(run, finished_folder, tmp_path):
    result = run("finetune", "--resume", "--steps", "16", "--output", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert len(_losses(tmp_path / "run")) == 16


@pytest.mark.slow
@pytest.mark.parametrize("edited", [False, True])
def test_a_card_that_was_edited_stays_when_a_run_is_trained_on(
    run, finished_folder, tmp_path, edited
):
    card = tmp_path / "run" / "README.md"
    first = card.read_text() + "What I found: it works.\n" * edited
    card.write_text(first)
    result = run("finetune", "--resume", "--steps", "16", "--output", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert ("What I found" in card.read_text()) == edited
    assert (card.read_text() == first) == edited
    assert (tmp_path / "run" / "README.new.md").exists() == edited


@pytest.mark.slow
def test_a_run_is_resumed_from_any_working_directory(run, arguments, tmp_path, tiny, monkeypatch):
    monkeypatch.chdir(tiny.parent)
    run(*arguments, "--model", tiny.name)
    _make_unfinished(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    result = run("finetune", "--resume", "--output", "run")
    assert result.exit_code == 0, result.output


def test_the_steps_are_on_record_with_the_run(run, finished_folder, tmp_path):
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["options"]["steps"] == 12
    assert set(record) == {"options", "data", "model", "before"}


def test_a_run_is_not_resumed_over_other_weights(run, arguments, tiny, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny, model)
    assert run(*arguments, "--model", model, "--steps", "4").exit_code == 0
    file = model / "model.safetensors"
    tensors = {key: tensor + 0.01 for key, tensor in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
    again = run("finetune", "--resume", "--steps", "8", "--output", tmp_path / "run")
    assert again.exit_code == 1
    assert "the model's weights have changed" in again.stderr.replace("\n", " ")


def test_of_two_runs_that_begin_in_one_folder_the_second_is_refused(tmp_path):
    first, second = RunFolder.at(tmp_path / "run"), RunFolder.at(tmp_path / "run")
    first.begin(options={"seed": 1})
    with pytest.raises(FinetuneError, match="taken by another run"):
        second.begin(options={"seed": 2})
    assert RunFolder.at(tmp_path / "run").record == {"options": {"seed": 1}}
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]
