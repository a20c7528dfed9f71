"""What is left beside the adapter: report, plot, card."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, strategies as st

from quantlora.finetune.evaluation import Measurement
from quantlora.finetune.plot import plot_losses, running_mean
from quantlora.finetune.trainer import Training

from .conftest import report_in


@pytest.fixture
def folder(run, arguments, tmp_path):
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return tmp_path / "run"


def test_the_report_is_complete_and_plain_json(folder):
    report = report_in(folder)
    assert set(report) == {
        "format", "model", "data", "perplexity", "sample", "training", "options", "machine",
        "versions",
    }  # fmt: skip
    assert report["data"]["measured_examples"] == 8
    assert report["training"]["tokens_per_second"] > 0
    assert report["machine"]["peak_memory_bytes"] > 2**20


def test_the_card_is_one_that_the_hub_reads(folder):
    from huggingface_hub import ModelCard

    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "peft"
    assert card.data.pipeline_tag == "text-generation"
    assert {"lora", "float"} <= set(card.data.tags)
    assert card.data.license is None  # not ours to say for a model of the user's


def test_the_card_names_the_figures_and_no_folder_of_this_machine(folder):
    card = (folder / "README.md").read_text()
    before, after = (report_in(folder)["perplexity"][key] for key in ("before", "after"))
    assert f"{before:.2f} | {after:.2f}" in card
    assert "# LoRA adapter for tiny0" in card
    assert "on text.txt" in card


def test_the_cards_example_runs(folder, monkeypatch):
    text = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    space: dict = {}
    exec(text.replace("path/to/this/folder", str(folder)), space)
    assert space["model"].active_adapters() == ["default"]


def test_the_plot_is_a_png_of_some_size(folder):
    content = (folder / "loss.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    width = int.from_bytes(content[16:20], "big")
    assert width == 1200


@pytest.mark.parametrize("steps", [1, 2, 500])
def test_any_number_of_steps_can_be_plotted(tmp_path, steps):
    training = Training([(i + 1, 3.0 - i / 500) for i in range(steps)], 0, 1.0, 1.0)
    plot_losses(
        tmp_path / "a.png", "title", training, Measurement(20, "", ""), Measurement(9, "", "")
    )
    assert (tmp_path / "a.png").stat().st_size > 5000


@given(st.floats(-10, 10), st.integers(1, 50))
def test_the_running_mean_of_equal_values_is_that_value(value, count):
    assert running_mean([value] * count) == pytest.approx([value] * count)


def test_json_files_end_with_a_newline(folder):
    for name in ("report.json", "run.json"):
        text = (folder / name).read_text()
        assert text.endswith("}\n")
        json.loads(text)
