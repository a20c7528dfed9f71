"""The trainers that ``--trainer`` offers: the same batches and callbacks, the same adapter."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

from quantlora_finetune.data.dataset import Collate
from quantlora_finetune.data.examples import Example, TrainingTokenizer
from quantlora_finetune.options.choices import TrainerName
from quantlora_finetune.training.measured_trainer import Measured, MeasuredTrainer


def make_trainer(
    name: TrainerName,
    model: PreTrainedModel,
    settings: dict[str, Any],
    examples: list[Example],
    collate: Collate,
    tokenizer: TrainingTokenizer,
    callbacks: list[TrainerCallback],
) -> Measured:
    """A trainer that is ready to train; ``settings`` are those of `TrainingArguments`."""
    arguments: dict[str, Any] = {"data_collator": collate, "callbacks": callbacks}
    if name is TrainerName.TRL:
        return _trls(model, settings, examples, tokenizer, arguments)
    arguments["train_dataset"] = examples
    return MeasuredTrainer(model, TrainingArguments(**settings), **arguments)


def _trls(
    model: PreTrainedModel,
    settings: dict[str, Any],
    examples: list[Example],
    tokenizer: TrainingTokenizer,
    arguments: dict[str, Any],
) -> Measured:
    """TRL's, told to leave alone what is prepared already: the examples, and checkpointing."""
    from datasets import Dataset

    trl: Any = importlib.import_module("trl")  # its names are not typed as exported

    class MeasuredSFTTrainer(Measured, trl.SFTTrainer):  # type: ignore[misc]
        """TRL's own."""

    collate: Collate = arguments["data_collator"]

    def collate_rows(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return dict(collate([Example(row["input_ids"], row["given"]) for row in rows]))

    arguments |= {"data_collator": collate_rows, "processing_class": tokenizer.tokenizer}
    rows = [{"input_ids": example.input_ids, "given": example.given} for example in examples]
    untouched = {"dataset_kwargs": {"skip_prepare_dataset": True}, "gradient_checkpointing": False}
    config = trl.SFTConfig(**settings, **untouched, bf16=False)
    return MeasuredSFTTrainer(model, config, train_dataset=Dataset.from_list(rows), **arguments)
