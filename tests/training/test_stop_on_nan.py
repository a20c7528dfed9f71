"""A gradient that is no number ends the training with its step and layer, the weights unspoilt."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

import quantlora
from quantlora.testing.models import tiny_llama

ROWS = [[1, *range(3 + i, 18 + i)] for i in range(24)]
DATA = [{"input_ids": row, "labels": row} for row in ROWS]


def _model() -> torch.nn.Module:
    return quantlora.wrap(tiny_llama(), backend="float", r=4, lora_alpha=8)


@pytest.fixture
def train(tmp_path) -> Callable[..., Any]:
    def run(model: torch.nn.Module, callbacks: list[Any], **changes: Any) -> Trainer:
        settings = {"max_steps": 6, "save_steps": 2, "per_device_train_batch_size": 4, **changes}
        arguments = TrainingArguments(
            str(tmp_path / "run"), report_to="none", use_cpu=True, disable_tqdm=True, **settings
        )
        trainer = Trainer(model, arguments, train_dataset=DATA, callbacks=callbacks)
        trainer.train()
        return trainer

    return run


def _spoil_backward(model: torch.nn.Module, step: int) -> None:
    """From that step on, what flows back into the first block is NaN: its own gradients too."""
    calls = iter(range(1, 100))

    def spoil(module: torch.nn.Module, gradients: Any) -> Any:
        return [g * float("nan") for g in gradients] if next(calls) >= step else None

    model.model.layers[0].register_full_backward_pre_hook(spoil)


def _adapter(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {path: p.detach().clone() for path, p in model.named_parameters() if p.requires_grad}


FIRST_IN_BACKWARD = r"model.layers.0.mlp.down_proj.lora_[AB].default.weight"


def test_it_names_the_step_the_first_gradient_the_loss_and_the_checkpoint(train, tmp_path):
    model = _model()
    _spoil_backward(model, step=4)
    with pytest.raises(quantlora.NonFiniteError) as caught:
        train(model, [quantlora.StopOnNaN()])
    message = str(caught.value)
    assert re.match(f"step 4: the gradient of {FIRST_IN_BACKWARD} is not finite", message)
    assert "; the loss was 4." in message
    assert "in forward" not in message
    assert f"the last checkpoint is {tmp_path / 'run' / 'checkpoint-2'}" in message
    assert "Use a lower learning rate" in message


def test_the_weights_are_those_of_the_steps_before(train):
    spoilt, sound = _model(), _model()
    _spoil_backward(spoilt, step=3)
    with pytest.raises(quantlora.NonFiniteError, match="the weights are those after step 2"):
        train(spoilt, [quantlora.StopOnNaN()], lr_scheduler_type="constant")
    train(sound, [], max_steps=2, lr_scheduler_type="constant")
    for path, value in _adapter(sound).items():
        assert torch.equal(_adapter(spoilt)[path], value), path


def test_without_it_the_weights_are_lost(train):
    model = _model()
    _spoil_backward(model, step=3)
    train(model, [])
    assert not all(value.isfinite().all() for value in _adapter(model).values())


def test_a_loss_that_is_nan_is_traced_to_the_first_module_in_forward(train):
    model = _model()
    model.model.layers[1].self_attn.v_proj.base_layer.weight.data[3] = float("inf")
    with pytest.raises(quantlora.NonFiniteError) as caught:
        train(model, [quantlora.StopOnNaN("Buy a new one.")], gradient_accumulation_steps=2)
    assert "step 1: the gradient of model.layers.1." in str(caught.value)
    assert "the loss was nan" in str(caught.value)
    assert "first not finite in forward: model.layers.1.self_attn.v_proj." in str(caught.value)
    assert str(caught.value).endswith("there is no checkpoint yet. Buy a new one.")


def test_a_sound_training_keeps_its_bits_and_no_hook_is_left(train):
    watched, alone = _model(), _model()
    hooks = len(watched._forward_hooks)
    train(watched, [quantlora.StopOnNaN()])
    train(alone, [])
    for path, value in _adapter(alone).items():
        assert torch.equal(_adapter(watched)[path], value), path
    assert not any(p._post_accumulate_grad_hooks for p in watched.parameters())
    assert len(watched._forward_hooks) == hooks


@pytest.mark.parametrize(("fp16", "steps"), [(False, 1), (True, 20)])
def test_float16s_loss_scaling_may_skip_steps_while_it_looks_for_its_scale(fp16, steps):
    model = _model()
    callback = quantlora.StopOnNaN()
    arguments, state = SimpleNamespace(fp16=fp16, output_dir=None), SimpleNamespace(global_step=0)
    callback.on_train_begin(arguments, state, None, model=model)
    for step in range(1, steps + 1):
        (model(input_ids=torch.tensor(ROWS[:1])).logits.sum() * float("inf")).backward()
        if step < steps:
            callback.on_pre_optimizer_step(arguments, state, None)
    with pytest.raises(quantlora.NonFiniteError):
        callback.on_pre_optimizer_step(arguments, state, None)


def test_trls_trainer_is_stopped_too(tmp_path):
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    from quantlora.testing.models import tiny_tokenizer

    model = _model()
    _spoil_backward(model, step=2)
    settings = {"max_steps": 3, "report_to": "none", "use_cpu": True, "bf16": False}
    trainer = trl.SFTTrainer(
        model,
        trl.SFTConfig(str(tmp_path), **settings, gradient_checkpointing=False),
        train_dataset=datasets.Dataset.from_list([{"text": "a dog"}] * 8),
        processing_class=tiny_tokenizer(),
        callbacks=[quantlora.StopOnNaN()],
    )
    with pytest.raises(
        quantlora.NonFiniteError, match=f"step 2: the gradient of {FIRST_IN_BACKWARD}"
    ):
        trainer.train()


TWO_PROCESSES = """
import sys, torch
from transformers import Trainer, TrainingArguments
import quantlora
from quantlora.testing.models import tiny_llama

model = quantlora.wrap(tiny_llama(), backend="float", r=4, lora_alpha=8)
rank = int(__import__("os").environ["RANK"])
if rank == 1:  # its own gradients alone, before they are averaged
    block = model.model.layers[0]
    block.register_full_backward_pre_hook(lambda m, g: [x * float("nan") for x in g])
row = list(range(1, 17))
arguments = TrainingArguments(sys.argv[1], max_steps=2, report_to="none", use_cpu=True)
data = [{"input_ids": row, "labels": row}] * 64
try:
    Trainer(model, arguments, train_dataset=data, callbacks=[quantlora.StopOnNaN()]).train()
except quantlora.NonFiniteError as error:
    print(f"process {rank} says: {error}", flush=True)
"""


@pytest.mark.slow
def test_of_two_processes_both_stop_and_say_the_same(run_python, tmp_path):
    (tmp_path / "train.py").write_text(TWO_PROCESSES)
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", str(tmp_path / "train.py")]
    output = run_python(*launch, str(tmp_path / "run")).stdout
    for process in (0, 1):
        assert f"process {process} says: step 1: the gradient of model.layers.0" in output
    assert output.count("first one in backward (process 1)") == 2
