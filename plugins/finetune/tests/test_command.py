"""The whole command on a tiny model: what it does, says and leaves behind."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
import torch
from quantlora_finetune.data.dataset import collate_with, load_dataset
from quantlora_finetune.data.examples import TrainingTokenizer
from quantlora_finetune.model.base_model import find_base, load_model
from quantlora_finetune.options.choices import Dtype
from quantlora_finetune.options.finetune_options import FinetuneOptions
from quantlora_finetune.reporting.evaluation import perplexity
from quantlora_finetune.run.run_folder import RunFolder
from safetensors.torch import load_file

from quantlora.wrapped_model import load_adapter

from .conftest import report_in

needs_bitsandbytes = pytest.mark.skipif(not find_spec("bitsandbytes"), reason="needs bitsandbytes")
IN_FOUR_BITS = pytest.param("bitsandbytes_4bit", marks=needs_bitsandbytes)


@pytest.mark.parametrize("backend", ["float", IN_FOUR_BITS])
def test_the_command_leaves_adapter_report_plot_and_card(run, arguments, tmp_path, backend):
    result = run(*arguments, "--backend", backend)
    assert result.exit_code == 0, result.output
    left = {path.name for path in (tmp_path / "run").iterdir()}
    wanted = {"adapter_config.json", "adapter_model.safetensors", "loss.png", "README.md"}
    assert wanted | {"report.json", "run.json", "checkpoints"} <= left
    assert report_in(tmp_path / "run")["model"]["formats"] == {backend: 14}


def test_it_says_what_it_used_and_what_it_brought(finished):
    output = finished.output
    figures = report_in(finished.folder)["perplexity"]
    for part in (
        "14 layers in float; computes in float32 on cpu",
        f"Held-out perplexity before training: {figures['before']:.2f}",
        f"Held-out perplexity after training: {figures['after']:.2f}",
        "tokens/s",
    ):
        assert part in output


def test_the_loss_of_each_step_is_reported_and_falls(finished):
    report = report_in(finished.folder)
    losses = [one["loss"] for one in report["training"]["steps"]]
    assert len(losses) == 12
    assert losses[-1] < losses[0] - 0.3
    assert report["perplexity"]["fall_percent"] > 20


@pytest.mark.parametrize(
    ("backend", "init"),
    [
        pytest.param("float", "default", marks=pytest.mark.slow),
        pytest.param("bitsandbytes_4bit", "default", marks=[needs_bitsandbytes, pytest.mark.slow]),
        pytest.param("bitsandbytes_4bit", "loftq", marks=needs_bitsandbytes),
    ],
)
def test_the_reloaded_adapter_measures_the_same_to_the_last_bit(
    run, arguments, tmp_path, backend, init
):
    result = run(*arguments, "--backend", backend, "--init", init)
    assert result.exit_code == 0, result.output
    report = report_in(tmp_path / "run")
    options = FinetuneOptions.from_json(report["options"])
    base = find_base(options)
    data = load_dataset(options, TrainingTokenizer(base.tokenizer))
    model = load_model(base, Dtype.FLOAT32)
    load_adapter(model, tmp_path / "run", backend=backend)
    found = perplexity(model, data.held_out, collate_with(base.padding), options.batch_size)
    assert found == report["perplexity"]["after"]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_adapter_and_another_a_different_one(run, arguments, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(*arguments, "--output", tmp_path / name, "--seed", seed)
    a, b, c = (load_file(tmp_path / name / "adapter_model.safetensors") for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(a[key], c[key]) for key in a)


@pytest.mark.slow
@needs_bitsandbytes
def test_an_already_quantized_model_is_taken_as_it_is(run, arguments, tmp_path, tiny):
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    folder = tmp_path / "quantized"
    config = BitsAndBytesConfig(load_in_8bit=True)
    AutoModelForCausalLM.from_pretrained(tiny, quantization_config=config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    given = [one for one in arguments if one not in ("--backend", "float")]
    result = run(*given, "--model", folder)
    assert result.exit_code == 0, result.output
    assert report_in(tmp_path / "run")["model"]["formats"] == {"bitsandbytes_8bit": 14}


@pytest.mark.slow
def test_a_run_with_variant_targets_and_accumulation(run, arguments, tmp_path):
    choices = ["--variant", "dora", "--target-modules", "q_proj,v_proj", "--accumulate", "2"]
    result = run(*arguments, *choices, "--gradient-checkpointing", "--dropout", "0.1")
    assert result.exit_code == 0, result.output
    config = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert (config["use_dora"], config["target_modules"]) == (True, ["q_proj", "v_proj"])
    assert config["base_model_name_or_path"].endswith("tiny0")


@pytest.mark.slow
def test_checkpointed_activations_change_no_bit(run, arguments, tmp_path):
    run(*arguments, "--output", tmp_path / "kept")
    run(*arguments, "--output", tmp_path / "twice", "--gradient-checkpointing")
    kept, twice = (tmp_path / name / "adapter_model.safetensors" for name in ("kept", "twice"))
    assert kept.read_bytes() == twice.read_bytes()


def test_the_folder_is_not_claimed_before_everything_is_checked(run, arguments, tmp_path):
    assert run(*arguments, "--target-modules", "q_prj").exit_code == 1
    assert not RunFolder(tmp_path / "run", {}).has_begun
    assert run(*arguments).exit_code == 0


@pytest.mark.slow
def test_trls_trainer_ends_with_the_same_adapter_and_can_be_resumed(run, arguments, tmp_path):
    pytest.importorskip("trl")
    run(*arguments, "--output", tmp_path / "transformers")
    result = run(*arguments, "--trainer", "trl", "--output", tmp_path / "trl")
    assert result.exit_code == 0, result.output
    one, two = (
        load_file(tmp_path / n / "adapter_model.safetensors") for n in ("transformers", "trl")
    )
    for key in one:
        torch.testing.assert_close(
            two[key], one[key], rtol=1e-3, atol=1e-4
        )  # its sums round otherwise
    result = run("finetune", "--resume", "--steps", "14", "--output", tmp_path / "trl")
    assert result.exit_code == 0, result.output
    assert len(report_in(tmp_path / "trl")["training"]["steps"]) == 14


@pytest.mark.slow
def test_tensorboard_gets_each_steps_figures(run, arguments, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    result = run(*arguments, "--report-to", "tensorboard")
    assert result.exit_code == 0, result.output
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    steps = report_in(tmp_path / "run")["training"]["steps"]
    names = {"loss": "loss", "grad_norm": "gradient_norm", "learning_rate": "learning_rate"}
    for tag, field in {**names, "tokens_per_second": "tokens_per_second"}.items():
        written = [one.value for one in events.Scalars(f"train/{tag}")]
        assert written == pytest.approx([one[field] for one in steps], rel=1e-5), tag


def test_what_is_cut_off_is_said(run, arguments, tmp_path):
    data = tmp_path / "data.jsonl"
    rows = [{"prompt": "a" * p, "completion": "b" * c} for p, c in ((5, 5), (5, 90), (90, 5))]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows * 6))
    result = run(*arguments, "--data", data)
    assert result.exit_code == 0, result.output
    assert "examples are cut off at their end, 6 whose prompt alone fills it" in result.output
    found = report_in(tmp_path / "run")["data"]
    assert (found["cut_examples"], found["left_out_examples"]) == (6, 6)


def test_the_memory_is_said_before_and_after(finished):
    output = finished.output
    assert output.index("Memory, predicted: ") < output.index("before training")
    assert output.index("measured") > output.index("after training")
