"""Tiny models as users load them, in each format, under each trainer."""

from __future__ import annotations

import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainingArguments

import quantlora
from quantlora.testing.models import save_tiny_llama, tiny_tokenizer

STEPS = 6
#: One text for each sample, all of 12 tokens, so that batches may be split without padding.
TEXTS = [f"{'abcdefghij'[i]} is the {'zyxwvutsrq'[i]}." for i in range(8)]
OPTIONS: dict[str, Any] = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 2,
    "learning_rate": 0.02,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": [],
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
}


@cache
def _checkpoint(packed: bool = False) -> Path:
    """A folder with the tiny Llama, float or GPTQ."""
    folder = Path(tempfile.mkdtemp())
    if packed:
        from plugins.gptq.tests.gptq_checkpoint import Recipe, write_checkpoint

        write_checkpoint(folder, Recipe())
        return folder
    return save_tiny_llama(folder)


def loaded(backend: str) -> nn.Module:
    """A model without adapters, by ``from_pretrained`` where that makes the format."""
    options: dict[str, Any] = {}
    if backend.startswith("bitsandbytes"):
        bits = {f"load_in_{backend[-4]}bit": True}
        options = {"quantization_config": BitsAndBytesConfig(**bits), "device_map": "cpu"}
    if backend == "gptq":
        options = {"device_map": "cpu"}
    model: nn.Module = AutoModelForCausalLM.from_pretrained(
        _checkpoint(backend == "gptq"), **options
    )
    return model


def wrapped(backend: str) -> nn.Module:
    """The same adapter on the same weights at each call."""
    model = loaded(backend)
    torch.manual_seed(1)
    asked = backend if backend == "normalfloat" else "auto"
    return quantlora.wrap(model, backend=asked, r=4)


def make(trainer: str, backend: str, folder: Path, **options: Any) -> Trainer:
    """A trainer of the kind around a fresh model; options are those of its arguments."""
    return _MAKERS[trainer](wrapped(backend), str(folder), {**OPTIONS, **options})


def _trainer(model: nn.Module, folder: str, options: dict[str, Any]) -> Trainer:
    ids = tiny_tokenizer()(TEXTS).input_ids
    data = [{"input_ids": one, "labels": one} for one in ids]
    return Trainer(
        model, TrainingArguments(folder, **options), train_dataset=data, eval_dataset=data
    )


def _sft_trainer(model: nn.Module, folder: str, options: dict[str, Any]) -> Trainer:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    data = Dataset.from_dict({"text": TEXTS})
    arguments = SFTConfig(folder, max_length=32, **options)
    trainer: Trainer = SFTTrainer(
        model,
        arguments,
        train_dataset=data,
        eval_dataset=data,
        processing_class=tiny_tokenizer(),
    )
    return trainer


_MAKERS = {"Trainer": _trainer, "SFTTrainer": _sft_trainer}


def losses(trainer: Trainer) -> dict[int, float]:
    """The training loss by step."""
    return {log["step"]: log["loss"] for log in trainer.state.log_history if "loss" in log}


@cache
def unbroken(trainer: str, backend: str) -> dict[int, float]:
    """The losses of a plain run, for runs that must give the same."""
    plain = make(trainer, backend, Path(tempfile.mkdtemp()))
    plain.train()
    return losses(plain)


def peft_is_imported() -> bool:
    return sys.modules.get("peft") is not None
