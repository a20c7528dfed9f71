"""Trains, resumes and loads the best checkpoint with two active adapters, PEFT hidden.

    python two_adapters.py FOLDER

Prints JSON for the test that runs it.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import tests.training.without_peft  # noqa: F401

# isort: split

import torch
import transformers
from transformers import PreTrainedModel, Trainer, TrainingArguments

import quantlora
from quantlora.testing.models import tiny_llama


class Messages(logging.Handler):
    """Keeps what Trainer warns about."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class Numbers(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = torch.arange(index, index + 8) % 64
        return {"input_ids": tokens, "labels": tokens}


def wrapped() -> PreTrainedModel:
    model = quantlora.wrap(tiny_llama(num_hidden_layers=1), r=4)
    return quantlora.wrap(model, r=2, adapter_name="reference", inference_mode=True)


def trainer(folder: Path, highest_loss_is_best: bool = False) -> Trainer:
    model = wrapped()
    model.set_adapter(["default", "reference"])
    options = TrainingArguments(
        str(folder),
        max_steps=6,
        per_device_train_batch_size=2,
        save_steps=2,
        eval_steps=2,
        eval_strategy="steps",
        load_best_model_at_end=True,
        greater_is_better=highest_loss_is_best,
        learning_rate=0.1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        gradient_checkpointing=True,
    )
    return Trainer(model, options, train_dataset=Numbers(), eval_dataset=Numbers())


def distance(one: torch.nn.Module, other: torch.nn.Module) -> float:
    there = dict(other.named_parameters())
    pairs = [(p, there[name]) for name, p in one.named_parameters()]
    return max(float((p - q).abs().max()) for p, q in pairs)


def main(folder: Path) -> dict[str, object]:
    messages = Messages()
    transformers.logging.get_logger("transformers").addHandler(messages)
    straight = trainer(folder / "straight")
    straight.train()
    resumed = trainer(folder / "resumed")
    resumed.train(resume_from_checkpoint=str(folder / "straight" / "checkpoint-4"))
    going_back = trainer(folder / "back", highest_loss_is_best=True)
    going_back.train()
    resumed.save_model(str(folder / "final"))
    best = going_back.state.best_model_checkpoint
    return {
        "peft": transformers.utils.is_peft_available(),
        "resumed": distance(straight.model, resumed.model),
        "best": Path(best).name,
        "best_metric": going_back.state.best_metric,
        "loaded_metric": going_back.evaluate()["eval_loss"],
        "final": sorted(path.name for path in (folder / "final").rglob("adapter_*")),
        "keys": [line for line in messages.lines if "missing keys" in line],
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
