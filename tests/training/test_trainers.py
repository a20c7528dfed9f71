"""Transformers' Trainer and TRL's SFTTrainer on wrapped models, feature by feature."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import Trainer

import quantlora
from tests.training.matrix import cells
from tests.training.trainers import STEPS, loaded, losses, make, unbroken

ADAPTER = ["adapter_config.json", "adapter_model.safetensors"]


@cells("train")
def test_training_lowers_the_loss_and_leaves_the_base(trainer: str, backend: str) -> None:
    found = unbroken(trainer, backend)
    assert list(found) == list(range(1, STEPS + 1))
    assert found[STEPS] < found[1] - 0.1


@cells("evaluate during training")
def test_the_loss_is_measured_during_training(trainer: str, backend: str, tmp_path: Path) -> None:
    run = make(trainer, backend, tmp_path, eval_strategy="steps", eval_steps=3)
    run.train()
    measured = [log["eval_loss"] for log in run.state.log_history if "eval_loss" in log]
    assert len(measured) == 2
    assert measured[1] < measured[0]
    assert losses(run) == unbroken(trainer, backend)


@cells("checkpoint")
def test_a_checkpoint_holds_the_adapter_alone(trainer: str, backend: str, tmp_path: Path) -> None:
    run = make(trainer, backend, tmp_path, save_strategy="steps", save_steps=3)
    run.train()
    folder = tmp_path / "checkpoint-3"
    assert {path.name for path in folder.glob("adapter_*")} == set(ADAPTER)
    adapter = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            names = list(tensors.keys())
        assert names
        assert all("lora_" in name for name in names)
        assert file.stat().st_size < 4 * adapter + 8192  # float32, and the names


@cells("resume")
def test_a_resumed_run_has_the_losses_of_the_unbroken_one(
    trainer: str, backend: str, tmp_path: Path
) -> None:
    make(trainer, backend, tmp_path, max_steps=STEPS, save_strategy="steps", save_steps=3).train()
    run = make(trainer, backend, tmp_path)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert losses(run) == unbroken(trainer, backend)


@cells("load the best model")
def test_the_best_checkpoint_is_loaded_at_the_end(
    trainer: str, backend: str, tmp_path: Path
) -> None:
    often = {f"{what}_strategy": "steps" for what in ("save", "eval")}
    run = make(
        trainer,
        backend,
        tmp_path,
        **often,
        save_steps=3,
        eval_steps=3,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,  # so that the last one is not the best
    )
    run.train()
    assert Path(run.state.best_model_checkpoint).name == "checkpoint-3"
    assert run.evaluate()["eval_loss"] == run.state.best_metric


@cells("save the model")
def test_a_saved_model_is_its_adapter(trainer: str, backend: str, tmp_path: Path) -> None:
    run = make(trainer, backend, tmp_path / "run")
    run.train()
    run.save_model(str(tmp_path / "saved"))
    assert not list((tmp_path / "saved").glob("model*.safetensors"))
    fresh = quantlora.load_adapter(loaded(backend), tmp_path / "saved")
    trained = {name: p for name, p in run.model.named_parameters() if p.requires_grad}
    assert trained
    for name, parameter in trained.items():
        assert torch.equal(fresh.get_parameter(name), parameter.float())


@cells("gradient accumulation")
def test_accumulated_gradients_are_those_of_the_larger_batch(
    trainer: str, backend: str, tmp_path: Path
) -> None:
    run = make(
        trainer, backend, tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=2
    )
    run.train()
    check_same(run, unbroken(trainer, backend))


@cells("mixed precision (bf16)")
def test_mixed_precision_has_nearly_the_losses_of_float32(
    trainer: str, backend: str, tmp_path: Path
) -> None:
    run = make(trainer, backend, tmp_path, bf16=True)
    run.train()
    assert losses(run) != unbroken(trainer, backend)
    assert losses(run) == pytest.approx(unbroken(trainer, backend), rel=0.02)


@cells("gradient checkpointing, reentrant")
def test_reentrant_checkpointing_changes_no_loss(
    trainer: str, backend: str, tmp_path: Path
) -> None:
    check_checkpointing(trainer, backend, tmp_path, use_reentrant=True)


@cells("gradient checkpointing, non-reentrant")
def test_non_reentrant_checkpointing_changes_no_loss(
    trainer: str, backend: str, tmp_path: Path
) -> None:
    check_checkpointing(trainer, backend, tmp_path, use_reentrant=False)


def check_checkpointing(trainer: str, backend: str, folder: Path, use_reentrant: bool) -> None:
    """Checkpointing is at work, and the losses are those of the run without it."""
    kwargs = {"use_reentrant": use_reentrant}
    run = make(
        trainer, backend, folder, gradient_checkpointing=True, gradient_checkpointing_kwargs=kwargs
    )
    run.train()
    assert run.model.is_gradient_checkpointing
    check_same(run, unbroken(trainer, backend))


def check_same(run: Trainer, wanted: dict[int, float]) -> None:
    """The losses of ``run`` are ``wanted``, up to the rounding of its adapter.

    TRL casts the adapter of a model that is quantized by bitsandbytes to bfloat16.
    """
    half = {p.dtype for p in run.model.parameters() if p.requires_grad} == {torch.bfloat16}
    assert losses(run) == pytest.approx(wanted, rel=1e-3 if half else 1e-5)
