"""A user's mistake ends in one message that says what to do, exit code 1 or 2, no traceback."""

from __future__ import annotations

import importlib.metadata
import re
import sys

import pytest
from safetensors.torch import load_file

from quantlora.errors import FinetuneError
from quantlora.requirements import forget

CASES = {
    "no such folder": (["--model", "./missing"], "there is no folder missing"),
    "no such id": (["--model", "no-such-org/model"], "cannot be fetched from the Hugging Face hub"),
    "model is a file": (["--model", "{text}"], "is a file: give the model's folder"),
    "not a model's folder": (["--model", "{tmp}"], "there is no config.json"),
    "no such data": (["--data", "missing.txt"], "there is no file missing.txt"),
    "too little text": (["--data", "{short}"], "gives 0 examples of 32 tokens"),
    "no data at all": (["--data", "{empty}"], "there is nothing in it to train on"),
    "length beyond the model": (["--length", "300"], "reads at most 256 tokens at once"),
    "prompt beyond the model": (["--prompt", "x" * 240], "leave no room to continue"),
    "no such backend": (["--backend", "bitsandbites_4bit"], "unknown backend 'bitsandbites_4bit'"),
    "bits the backend lacks": (["--bits", "5"], "backend 'float' does not offer 5 bits"),
    "no such layer": (["--target-modules", "q_prj"], "Near names: "),
    "no such start": (["--init", "gausian"], "unknown initializer 'gausian'"),
    "no such variant": (["--variant", "dorra"], "unknown variant 'dorra'"),
    "a start that changes the base": (["--init", "pissa"], "leaves only the adapter"),
    "learning rate of zero": (["--lr", "0"], "--lr must be above 0"),
    "learning rate that is no number": (["--lr", "nan"], "--lr must be above 0"),
    "learning rate beyond all sense": (["--lr", "50"], "--lr must be above 0 and at most 1"),
    "nothing to resume": (["--resume"], "holds no run to resume"),
    "output is a file": (["--output", "{text}"], "is a file: name a folder"),
    "output is under a file": (["--output", "{text}/run"], "is a file: name a folder"),
    "no such optimizer": (["--optim", "adamw8bit"], "Did you mean 'adamw_8bit'"),
    "an optimizer of whole weights": (["--optim", "galore_adamw"], "Use adamw_8bit or"),
    "no setting": (["--optim-args", "momentum"], "--optim-args is name=value"),
    "no such schedule": (["--scheduler", "cosin"], "Did you mean 'cosine'"),
    "a schedule that measures": (["--scheduler", "greedy"], "Use linear or cosine"),
    "a schedule without its setting": (
        ["--scheduler", "cosine_with_min_lr"],
        "needs --scheduler-args min_lr_rate=...",
    ),
    "no such setting of it": (
        ["--scheduler", "cosine", "--scheduler-args", "num_cycle=2"],
        "Did you mean 'num_cycles'",
    ),
    "no such tracker": (["--report-to", "wandbb"], "Did you mean 'wandb'"),
    "half a step": (["--warmup", "2.5"], "a whole number of steps, or a share below 1"),
    "output is in use": (["--output", "{tmp}"], "is not empty: name another folder"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_gets_a_message(run, arguments, case, text, tmp_path):
    wrong, message = CASES[case]
    (tmp_path / "short.txt").write_text("short")
    (tmp_path / "empty.txt").touch()
    files = {name: tmp_path / f"{name}.txt" for name in ("short", "empty")}
    places = {"text": text, "tmp": tmp_path, **files}
    result = run(*arguments, *(one.format(**places) for one in wrong))
    assert message in result.stderr.replace("\n", " ")
    assert (result.exit_code, type(result.exception)) == (1, SystemExit)
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "wrong",
    [["--steps", "0"], ["--rank", "-1"], ["--lr", "fast"], ["--dtype", "int3"], ["--stepps", "3"],
     ["--held-out", "1"], ["--length", "1"], ["--seed", "-1"]],
)  # fmt: skip
def test_a_value_that_cannot_be_is_a_usage_error(run, arguments, wrong):
    result = run(*arguments, *wrong)
    assert result.exit_code == 2
    assert wrong[0] in result.stderr


def test_a_folder_that_holds_a_run_is_not_written_over(run, arguments, finished_folder, tmp_path):
    before = (tmp_path / "run" / "adapter_model.safetensors").read_bytes()
    result = run(*arguments)
    assert result.exit_code == 1
    assert "holds a run already; it is finished." in result.stderr
    assert "--resume, or name another folder with --output" in result.stderr.replace("\n", " ")
    assert (tmp_path / "run" / "adapter_model.safetensors").read_bytes() == before


def test_a_resumed_run_keeps_its_options(run, finished_folder, tmp_path):
    result = run("finetune", "--resume", "--output", tmp_path / "run", "--rank", 4, "--steps", 20)
    assert result.exit_code == 1
    assert "was started with --rank 8, not 4" in result.stderr


def test_a_resumed_run_refuses_other_data(run, arguments, tmp_path):
    data = tmp_path / "data.txt"
    data.write_text("one text " * 200)
    run(*arguments, "--data", data)
    data.write_text("another text " * 200)
    result = run("finetune", "--resume", "--steps", 20, "--output", tmp_path / "run")
    assert result.exit_code == 1
    assert "the data has changed" in result.stderr


@pytest.mark.parametrize("library", ["accelerate", "jinja2", "matplotlib"])
def test_a_missing_library_is_named_before_anything_is_done(
    run, arguments, library, monkeypatch, tmp_path
):
    from quantlora_finetune.run import limits

    from quantlora.requirements import Requirement

    absent = Requirement(f"{library}-that-is-not-there", 'pip install "quantlora[demo]"')
    monkeypatch.setattr(limits, "_LIBRARIES", (absent,))
    result = run(*arguments)
    assert result.exit_code == 1
    assert 'pip install "quantlora[demo]"' in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.fixture
def without(monkeypatch):
    """A function that lets a library seem not to be installed."""
    version = importlib.metadata.version

    def hide(library):
        def found(name):
            if name == library:
                raise importlib.metadata.PackageNotFoundError
            return version(name)

        monkeypatch.setattr(importlib.metadata, "version", found)
        forget()

    yield hide
    forget()


@pytest.mark.parametrize(
    ("choice", "line"),
    [
        (["--report-to", "tensorboard,wandb"], "pip install wandb"),
        (["--report-to", "mlflow"], "pip install mlflow"),
        (["--trainer", "trl"], "pip install trl datasets"),
        (["--optim", "schedule_free_adamw"], "pip install schedulefree"),
        (["--optim", "paged_adamw_8bit"], "pip install bitsandbytes"),
    ],
)
def test_a_library_that_was_chosen_and_is_missing_is_named_with_the_line_that_brings_it(
    run, arguments, without, choice, line
):
    without(line.split()[2])
    result = run(*arguments, *choice)
    assert result.exit_code == 1
    assert f"\n{line}\n" in result.stderr


@pytest.fixture
def damaged(tiny, tmp_path):
    """A model that knows no number for the letter Z."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    model = AutoModelForCausalLM.from_pretrained(tiny)
    model.model.embed_tokens.weight.data[tokenizer.convert_tokens_to_ids("Z")] = float("nan")
    model.save_pretrained(tmp_path / "damaged")
    tokenizer.save_pretrained(tmp_path / "damaged")
    return tmp_path / "damaged"


def test_a_loss_that_is_no_number_stops_the_training_with_its_step_and_layer(
    run, arguments, damaged, tmp_path
):
    data = tmp_path / "data.txt"
    data.write_text("Zebra. " * 12 + "a dog. " * 400)  # the end is held out
    more = ["--model", damaged, "--data", data, "--steps", "60", "--save-every", "1"]
    result = run(*arguments, *more)
    assert result.exit_code == 1
    message = result.stderr.replace("\n", " ")
    found = re.search(r"error: step (\d+): .* the last checkpoint is .*checkpoint-(\d+)\.", message)
    assert found, message
    step, last = found.groups()
    assert int(last) == int(step) - 1
    assert "the gradient of model.layers.1.mlp.down_proj.lora_" in message
    assert "the loss was nan, first not finite in forward: model.embed_tokens" in message
    assert "with a lower --lr" in message
    kept = load_file(
        tmp_path / "run" / "checkpoints" / f"checkpoint-{last}" / "adapter_model.safetensors"
    )
    assert all(tensor.isfinite().all() for tensor in kept.values())


def test_a_model_of_nans_is_found_before_training(run, arguments, damaged, tmp_path):
    data = tmp_path / "data.txt"
    data.write_text("Zebra. " * 200)
    result = run(*arguments, "--model", damaged, "--data", data)
    assert result.exit_code == 1
    assert "its outputs are no numbers" in result.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_a_folder_that_cannot_be_written_to_is_named(run, arguments):
    result = run(*arguments, "--output", "/proc/run")
    assert result.exit_code == 1
    assert "/proc" in result.stderr


@pytest.mark.parametrize(
    ("after", "losses", "learned"),
    [
        (8.0, [3.0, 2.0, 1.0, 1.0], True),
        (12.0, [3.0, 2.0, 1.0, 1.0], True),  # too long on too little: worse, but not diverged
        (8.0, [3.0, 4.0, 4.0, 4.0], True),
        (1000.0, [3.0, 4.0, 5.0, 7.0], False),
        (float("inf"), [3.0, 2.0, 1.0, 1.0], False),
        (float("nan"), [3.0, 2.0, 1.0, 1.0], False),
    ],
)
def test_a_training_has_diverged_where_the_held_out_and_the_own_loss_rose(
    after, losses, learned, tmp_path
):
    from quantlora_finetune.job import _learned
    from quantlora_finetune.run.run_folder import RunFolder

    steps = [{"loss": loss} for loss in losses]
    report = {"perplexity": {"before": 10.0, "after": after}, "training": {"steps": steps}}
    report["options"] = {"trainer": "transformers"}
    if learned:
        assert _learned(report, RunFolder(tmp_path, {})) is report
        return
    with pytest.raises(FinetuneError, match="has diverged"):
        _learned(report, RunFolder(tmp_path, {}))
