"""--optim, --scheduler, --warmup, LoRA+ and LoRA-FA: what each step is made with."""

from __future__ import annotations

import re
from importlib.util import find_spec

import pytest
import torch
from quantlora_finetune.model.adaptation import freeze_down_projections
from quantlora_finetune.model.batch_size import fitting_batch_size
from quantlora_finetune.options.finetune_options import FinetuneOptions
from quantlora_finetune.run import processes
from quantlora_finetune.training.adjusted_trainer import give_own_rate
from quantlora_finetune.training.optimizers import optimizer_bytes_of
from quantlora_finetune.training.schedules import starts_above_zero
from safetensors.torch import load_file
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

import quantlora
from quantlora.testing.models import tiny_llama

from .conftest import report_in

needs_bitsandbytes = pytest.mark.skipif(not find_spec("bitsandbytes"), reason="needs bitsandbytes")


def rates(name, warmup, steps=8, **settings):
    """The learning rate of each step, of a highest rate of 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    made = get_scheduler(name, optimizer, warmup, steps, settings)
    scheduler = starts_above_zero(made, warmup) if isinstance(made, LambdaLR) else made
    found = []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("name", ["linear", "cosine", "constant_with_warmup", "inverse_sqrt"])
def test_the_first_step_has_a_learning_rate_and_the_rest_the_schedules_own(name):
    found = rates(name, warmup=3)
    assert found[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    theirs = get_scheduler(name, optimizer, 3, 8).lr_lambdas[0]
    assert found[3:] == pytest.approx([theirs(step) for step in range(3, 8)])
    assert all(rate > 0 for rate in found)


def test_a_schedule_without_warmup_is_left_as_it_is():
    assert rates("linear", warmup=0, steps=4) == pytest.approx([1, 0.75, 0.5, 0.25])


@pytest.mark.parametrize(("warmup", "steps"), [(3, 3), (0.25, 3), (0.3, 4), (100, 11), (0, 0)])
def test_warmup_is_steps_or_a_share_of_them(warmup, steps):
    assert FinetuneOptions(steps=12, warmup=warmup).warmup_steps == steps


def test_loraplus_gives_up_projections_their_own_rate():
    model = quantlora.wrap(tiny_llama(), r=2)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.1)
    give_own_rate(optimizer, model, 16)
    rate = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert len(rate) == len(trained)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert rate[id(parameter)] == pytest.approx(1.6 if "lora_B" in name else 0.1)


OPTIMS = [
    pytest.param("sgd", ["--optim-args", "momentum=0.9"]),
    pytest.param("adafactor", ["--loraplus-lr-ratio", "4"], marks=pytest.mark.slow),
    pytest.param("adamw_8bit", [], marks=[needs_bitsandbytes, pytest.mark.slow]),
    pytest.param("adagrad", ["--scheduler", "cosine"], marks=pytest.mark.slow),
    pytest.param("rmsprop", ["--weight-decay", "0.1"], marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("optim", "more"), OPTIMS)
def test_a_run_trains_by_it_and_its_memory_was_predicted(run, arguments, tmp_path, optim, more):
    result = run(*arguments, "--optim", optim, "--steps", "2", "--rank", "32", *more)
    assert result.exit_code == 0, result.output
    memory = report_in(tmp_path / "run")["memory"]
    predicted, measured = (memory[name]["optimizer"] for name in ("predicted", "measured"))
    assert predicted == pytest.approx(measured, rel=0.1, abs=5000)


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_both_rates(run, arguments, tmp_path):
    given = ["--loraplus-lr-ratio", "4", "--scheduler", "cosine", "--warmup", "0.25"]
    run(*arguments, *given, "--steps", "8", "--output", tmp_path / "whole")
    run(*arguments, *given, "--steps", "8", "--output", tmp_path / "broken")
    kept = tmp_path / "broken" / "checkpoints"
    (kept / "checkpoint-8" / "complete").unlink()
    (tmp_path / "broken" / "report.json").unlink()
    result = run("finetune", "--resume", "--output", tmp_path / "broken")
    assert result.exit_code == 0, result.output
    whole, broken = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "broken")
    )
    assert all(torch.equal(whole[key], broken[key]) for key in whole)
    steps = report_in(tmp_path / "broken")["training"]["steps"]
    assert steps[0]["learning_rate"] == pytest.approx(0.01 / 3)


@pytest.mark.slow
def test_lora_fa_trains_up_projections_alone_and_keeps_fewer_activations(run, arguments, tmp_path):
    taken = {}
    for name, more in (("lora", []), ("fa", ["--lora-fa"])):
        result = run(*arguments, "--steps", "3", "--output", tmp_path / name, *more)
        assert result.exit_code == 0, result.output
        taken[name] = report_in(tmp_path / name)["memory"]["measured"]
    adapters = [load_file(tmp_path / name / "adapter_model.safetensors") for name in taken]
    for key in adapters[0]:
        same = torch.equal(adapters[0][key], adapters[1][key])
        assert not same
    assert taken["fa"]["gradients"] < 0.7 * taken["lora"]["gradients"]
    assert taken["fa"]["activations"] < taken["lora"]["activations"]


def test_what_lora_fa_freezes_stays_as_it_was_drawn():
    model = quantlora.wrap(tiny_llama(), r=2)
    freeze_down_projections(model)
    trained = {name.split(".")[-3] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"lora_B"}


@pytest.mark.parametrize(("free", "wanted"), [(1 << 40, 32), (1 << 10, 1)])
def test_the_batch_size_is_what_fits_into_free_memory(monkeypatch, free, wanted):
    model = quantlora.wrap(tiny_llama(), r=2)
    monkeypatch.setattr("quantlora_finetune.model.batch_size.free_bytes", lambda _: free)
    found = fitting_batch_size(model, FinetuneOptions(batch_size=0), length=32, rows=50)
    assert found.batch_size == wanted


@pytest.mark.slow
def test_twice_the_memory_is_twice_the_batch(monkeypatch):
    model = quantlora.wrap(tiny_llama(), r=2)
    found = []
    for free in (40_000_000, 80_000_000):
        monkeypatch.setattr("quantlora_finetune.model.batch_size.free_bytes", lambda _, n=free: n)
        found.append(fitting_batch_size(model, FinetuneOptions(batch_size=0), 64, 1000).batch_size)
    assert found[1] == 2 * found[0]
    assert 1 < found[0] < 64


@pytest.mark.slow
def test_a_run_says_the_batch_size_that_it_found_and_records_it(run, arguments, tmp_path):
    result = run(*arguments, "--batch-size", "auto", "--epochs", "1")
    assert result.exit_code != 0  # --steps is among the arguments
    given = [word for word in arguments if word not in ("--steps", "12", "--batch-size", "2")]
    result = run(*given, "--batch-size", "auto", "--epochs", "1")
    assert result.exit_code == 0, result.output
    size = report_in(tmp_path / "run")["options"]["batch_size"]
    assert f"Batch size: {size}, by the memory prediction" in result.output
    assert report_in(tmp_path / "run")["options"]["steps"] == -(-77 // size)


@pytest.mark.parametrize("given", ["0", "-1", "some"])
def test_a_batch_size_that_is_none_is_refused(run, given):
    result = run("finetune", "--batch-size", given)
    assert result.exit_code != 0
    assert "at least 1, or auto" in " ".join(re.sub("[│╭╰─╮╯]", " ", result.output).split())


def test_memory_of_an_eight_bit_optimizer_is_a_quarter_for_large_tensors():
    model = torch.nn.Linear(64, 64, bias=False)
    eight, plain = (
        optimizer_bytes_of(model, FinetuneOptions(optim=n)) for n in ("adamw_8bit", "adamw")
    )
    assert 4 * eight == plain == 2 * 4 * 64 * 64


def test_the_least_of_one_process_is_its_own():
    assert processes.least(7) == 7
