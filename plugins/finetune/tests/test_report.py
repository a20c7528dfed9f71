"""Output files beside the adapter: report, plot, card."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from quantlora_finetune.model.base_model import BaseModel
from quantlora_finetune.options.finetune_options import FinetuneOptions
from quantlora_finetune.reporting.charts import course_charts, memory_chart
from quantlora_finetune.reporting.evaluation import Measurement
from quantlora_finetune.reporting.page import write_page
from quantlora_finetune.reporting.plot import plot_losses, running_mean
from quantlora_finetune.reporting.report import ModelFacts, Report
from quantlora_finetune.training.trainer import Step, Training

from quantlora import MemoryUse

from .conftest import report_in


@pytest.fixture
def folder(finished):
    return finished.folder


def test_the_report_is_complete_and_plain_json(folder):
    report = report_in(folder)
    assert set(report) == {
        "format", "model", "data", "perplexity", "sample", "training", "options", "machine",
        "versions", "memory", "compared",
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
    data = report_in(folder)["data"]
    mean = data["train_tokens"] / data["train_rows"]
    assert f"12 steps of 2 examples, {mean:.0f} tokens each in the mean and 32 at most" in card


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


def _report(steps: int = 2, measured: MemoryUse | None = None, answer: str = "") -> Report:
    course = [Step(i + 1, 3 - i / 500, 1e-4, 0.5, 900.0) for i in range(steps)]
    return Report(
        BaseModel("tiny", "tiny", None, None),
        ModelFacts({"float": 14}, 14, 16_384, "float32", "cpu"),
        {"name": "text.txt", "measured_tokens": 9},
        FinetuneOptions(),
        Training(course, 0, 1.0, 1.0, measured),
        Measurement(20, "prompt", ""),
        Measurement(9, "prompt", answer),
        predicted=MemoryUse(2, 3, 5),
    )


@pytest.mark.parametrize("steps", [1, 2, 500])
def test_any_number_of_steps_can_be_plotted(tmp_path, steps):
    report = _report(steps)
    plot_losses(tmp_path / "a.png", report)
    assert (tmp_path / "a.png").stat().st_size > 5000
    assert all(len(one.png) > 5000 for one in course_charts(report.training.steps))


@pytest.mark.parametrize("measured", [None, MemoryUse(3 * 2**20, 0, 0, activations=5 * 2**30)])
@pytest.mark.parametrize("unit", [1, 2**10, 2**20, 2**30])
def test_memory_of_any_size_can_be_drawn(unit, measured):
    report = replace(_report(measured=measured), predicted=MemoryUse(2 * unit, 950 * unit, 0))
    assert len(memory_chart(report.memory).png) > 5000


def test_no_chart_is_wider_than_a_phone_shows_readably():
    report = _report(measured=MemoryUse(2, 3, 5))
    for chart in [*course_charts(report.training.steps), memory_chart(report.memory)]:
        assert int.from_bytes(chart.png[16:20], "big") / 150 * 96 * 0.8 < 358  # pixels of CSS


@pytest.fixture
def page(folder):
    return (folder / "report.html").read_text("utf-8")


def test_the_page_needs_nothing_but_itself(page):
    assert not re.findall(r'(?:src|href)=(?!"data:)|@import|url\(|<script|<link', page)
    HTMLParser().feed(page)
    images = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert [base64.b64decode(one)[:4] for one in images] == [b"\x89PNG"] * 5


def test_the_page_tells_the_reports_figures(folder, page):
    report = report_in(folder)
    assert f"{report['perplexity']['before']:.2f} → {report['perplexity']['after']:.2f}" in page
    for part in ("base packed", "base float", "adapters", "gradients", "optimizer", "activations"):
        assert f"<td>{part}</td>" in page
    assert page.count('<td class="number">') == 7 * 2


def test_what_a_model_writes_is_no_markup_of_the_page(tmp_path):
    report = _report(answer="\n<script>alert('1')</script>")
    report.data["name"] = "<b>text</b>"
    write_page(tmp_path / "page.html", report)
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "<script" not in page
    assert "<b>text" not in page
    assert "<pre>\n\n&lt;script&gt;" in page  # the first of these line breaks is HTML's


def test_a_run_without_a_step_to_measure_has_its_page(tmp_path):
    write_page(tmp_path / "page.html", _report(measured=None))
    page = (tmp_path / "page.html").read_text("utf-8")
    assert page.count('<td class="number">') == 7
    assert "measured</th>" not in page


def test_the_template_is_in_the_wheel():
    from hatchling.builders.wheel import WheelBuilder

    files = WheelBuilder(str(Path(__file__).parents[3])).recurse_included_files()
    names = {Path(one.distribution_path).as_posix() for one in files}
    assert "quantlora_finetune/reporting/page.html" in names


def test_each_step_has_its_figures(folder):
    steps = report_in(folder)["training"]["steps"]
    assert [one["step"] for one in steps] == list(range(1, 13))
    assert steps[0]["learning_rate"] < max(one["learning_rate"] for one in steps) == 0.01
    assert all(one["gradient_norm"] > 0 and one["tokens_per_second"] > 0 for one in steps)


def test_memory_is_predicted_as_it_is_measured(folder):
    memory = report_in(folder)["memory"]
    for part, measured in memory["measured"].items():
        assert memory["predicted"][part] == pytest.approx(measured, rel=0.05), part


@given(st.floats(-10, 10), st.integers(1, 50))
def test_the_running_mean_of_equal_values_is_that_value(value, count):
    assert running_mean([value] * count) == pytest.approx([value] * count)


def test_json_files_end_with_a_newline(folder):
    for name in ("report.json", "run.json"):
        text = (folder / name).read_text()
        assert text.endswith("}\n")
        json.loads(text)


def test_files_beside_the_data_are_named(run, arguments, text, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_text(json.dumps({"text": text.read_text()}))
    (data / "README.md").write_text("# What this is")
    result = run(*arguments, "--data", str(data))
    assert "Files beside the data, not read: README.md." in result.output
    assert report_in(tmp_path / "run")["data"]["unread_files"] == ["README.md"]
