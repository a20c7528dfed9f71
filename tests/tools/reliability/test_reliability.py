"""The short form of each trial, and that a trial notices what it is for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from quantlora_finetune.options.finetune_options import FinetuneOptions
from quantlora_finetune.run.open_run import open_run

from quantlora.checkpoint import match_tensors, save as saving, weights_file
from quantlora.errors import FinetuneError
from quantlora.files import swap_folder
from quantlora.wrapping import transaction
from tests.tools.reliability.page import PAGE
from tests.tools.reliability.trials import TRIALS, run_trial

BY_NAME = {trial.name: trial for trial in TRIALS}
TEXT = PAGE.read_text() if PAGE.exists() else ""
#: Those that take longer than the others together.
SLOW = {"workers", "determinism", "kill-finetune", "mutated-files", "full-disk"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(one.name, marks=[pytest.mark.slow] if one.name in SLOW else [])
        for one in TRIALS
        if one.short
    ],
)
def test_nothing_is_lost(name):
    trial = BY_NAME[name]
    result = run_trial(trial, trial.short, seed=0)
    assert result.tried >= trial.short
    assert not result.faults


def in_place(folder: Path, files, **options: object) -> None:
    """A save as it must not be."""
    for name, write in files.items():
        write(folder / name)


def test_a_save_in_place_is_noticed(monkeypatch):
    monkeypatch.setattr(saving, "write_set", in_place)
    result = run_trial(BY_NAME["kill-save"], 40, seed=0)
    assert any("adapter" in one.case or one.fault for one in result.faults)


def test_a_save_that_leaves_litter_is_noticed(monkeypatch):
    monkeypatch.setattr(swap_folder, "_retire", lambda *_: None)
    assert run_trial(BY_NAME["kill-save"], 20, seed=0).faults


def test_a_file_that_is_taken_as_it_comes_is_noticed(monkeypatch):
    monkeypatch.setattr(weights_file, "check_values", lambda *_: None)
    monkeypatch.setattr(
        match_tensors, "check_finite", lambda *_: None
    )  # the second look, at the model
    assert run_trial(BY_NAME["mutated-files"], 60, seed=0).faults


def test_a_model_that_is_left_half_wrapped_is_noticed(monkeypatch):
    monkeypatch.setattr(transaction._Memory, "restore", lambda self: None)
    assert run_trial(BY_NAME["memory-runs-out"], 300, seed=0).faults


def test_a_run_killed_while_it_begins_can_be_started_again(tmp_path):
    left = tmp_path / ".run.json.partial-dead"
    left.mkdir()
    (left / "run.json").write_text('{"opti')
    open_run(FinetuneOptions(output=tmp_path), ())
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FinetuneError, match="is not empty"):
        open_run(FinetuneOptions(output=tmp_path), ())


@pytest.mark.parametrize("name", BY_NAME)
def test_the_page_has_the_trial_with_nothing_lost(name):
    (row,) = re.findall(
        rf"^\| \[{name}\]\(#{name}\) \| ([\d,]+) \| ([\d,]+) \| (.*) \|$", TEXT, re.M
    )
    assert row[0] == row[1]
    assert row[2] == BY_NAME[name].guarantee
