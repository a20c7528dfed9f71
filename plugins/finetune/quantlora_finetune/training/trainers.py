"""The trainers that ``--trainer`` offers: the same batches and callbacks, the same adapter."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

from quantlora_finetune.data.dataset import Collate, Row
from quantlora_finetune.data.examples import TrainingTokenizer
from quantlora_finetune.options.choices import TrainerName
from quantlora_finetune.options.finetune_options import FinetuneOptions
from quantlora_finetune.training.adjusted_trainer import Adjusted
from quantlora_finetune.training.comparing_trainers import make_comparing_trainer
from quantlora_finetune.training.measured_trainer import Measured, MeasuredTrainer


def make_trainer(
    options: FinetuneOptions,
    model: PreTrainedModel,
    settings: dict[str, Any],
    examples: Sequence[Row],
    collate: Collate,
    tokenizer: TrainingTokenizer,
    callbacks: list[TrainerCallback],
) -> Measured:
    """A trainer that is ready to train; ``settings`` are those of `TrainingArguments`."""
    arguments: dict[str, Any] = {"data_collator": collate, "callbacks": callbacks}
    if options.trainer.compares:
        rows: Any = examples
        return make_comparing_trainer(options, model, settings, rows, tokenizer, callbacks)
    if options.trainer is TrainerName.TRL:
        return _trls(model, settings, examples, tokenizer, arguments)
    arguments["train_dataset"] = examples
    return MeasuredTrainer(model, TrainingArguments(**settings), **arguments)


def _trls(
    model: PreTrainedModel,
    settings: dict[str, Any],
    examples: Sequence[Row],
    tokenizer: TrainingTokenizer,
    arguments: dict[str, Any],
) -> Measured:
    """TRL's, told to leave alone what is prepared already: the examples, and checkpointing."""
    from datasets import Dataset

    trl: Any = importlib.import_module("trl")  # its names are not typed as exported

    class MeasuredSFTTrainer(Measured, Adjusted, trl.SFTTrainer):  # type: ignore[misc]
        """TRL's own."""

    collate: Collate = arguments["data_collator"]

    def collate_rows(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return dict(collate([examples[row["index"]] for row in rows]))

    arguments |= {"data_collator": collate_rows, "processing_class": tokenizer.tokenizer}
    rows = [{"input_ids": row.input_ids, "index": i} for i, row in enumerate(examples)]
    untouched = {"dataset_kwargs": {"skip_prepare_dataset": True}, "gradient_checkpointing": False}
    config = trl.SFTConfig(**settings, **untouched, bf16=False)
    return MeasuredSFTTrainer(model, config, train_dataset=Dataset.from_list(rows), **arguments)
