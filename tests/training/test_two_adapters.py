"""Trainer trains, saves, resumes and loads the best of two adapters, with PEFT not installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # three trainings in a process of its own


@pytest.fixture(scope="module")
def run(run_python, tmp_path_factory):
    script, place = Path(__file__).parent / "two_adapters.py", [Path(__file__).parents[2]]
    result = run_python(script, tmp_path_factory.mktemp("trainer"), path=place)
    return json.loads(result.stdout.splitlines()[-1])


def test_peft_is_not_there(run):
    assert run["peft"] is False


def test_resumed_training_ends_at_the_same_weights_bit_for_bit(run):
    assert run["resumed"] == 0.0


def test_best_checkpoint_is_loaded_at_the_end(run):
    assert run["best"] != "checkpoint-6"
    assert run["loaded_metric"] == run["best_metric"]


def test_frozen_weights_are_not_reported_missing(run):
    assert run["keys"] == []


def test_saved_model_is_both_active_adapters(run):
    files = ["adapter_config.json", "adapter_model.safetensors"]
    assert run["final"] == sorted(files * 2)
