"""Training: Transformers' Trainer on the wrapped model, with checkpoints to resume from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors.torch import load_file
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerState,
    TrainingArguments,
)

from quantlora.finetune import processes
from quantlora.finetune.checkpoints import MarkComplete, remove_incomplete
from quantlora.finetune.dataset import Collate, Dataset
from quantlora.finetune.option_fields import Schedule
from quantlora.finetune.options import FinetuneOptions
from quantlora.finetune.progress import ShowProgress
from quantlora.finetune.run_folder import RunFolder


@dataclass(frozen=True)
class Training:
    """What the training was: the loss after each step, and the speed of this process's share."""

    losses: list[tuple[int, float]]
    resumed_at: int
    seconds: float
    tokens_per_second: float

    def as_json(self) -> dict[str, Any]:
        return {
            "resumed_at_step": self.resumed_at,
            "seconds": round(self.seconds, 2),
            "tokens_per_second": round(self.tokens_per_second, 1),
            "losses": [{"step": step, "loss": loss} for step, loss in self.losses],
        }


def train(
    model: PreTrainedModel,
    data: Dataset,
    collate: Collate,
    options: FinetuneOptions,
    run: RunFolder,
    console: Console,
) -> Training:
    """Train to ``options.steps``, from the run's last complete checkpoint where it has one."""
    if processes.is_first():
        remove_incomplete(run.checkpoints)
    processes.wait_for_all()
    checkpoint, done = run.checkpoint, run.steps_done
    if options.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call]
    progress = ShowProgress(console, _tokens_per_step(data, options))
    trainer = Trainer(
        model,
        _arguments(options, run.checkpoints),
        data_collator=collate,
        train_dataset=data.train,
        callbacks=[MarkComplete(), progress],
    )
    trainer.remove_callback(PrinterCallback)
    try:
        if checkpoint is not None and done >= options.steps:
            trainer.state = _state_at(checkpoint, model)
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        progress.stop()
    losses = [(int(log["step"]), log["loss"]) for log in trainer.state.log_history if "loss" in log]
    return Training(losses, done, progress.seconds, progress.tokens_per_second)


def _state_at(checkpoint: Path, model: PreTrainedModel) -> TrainerState:
    """The books of a training that was complete, with its parameters put on ``model``."""
    model.load_state_dict(load_file(checkpoint / "model.safetensors"), strict=False)
    state: TrainerState = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    return state


def _tokens_per_step(data: Dataset, options: FinetuneOptions) -> int:
    mean = sum(len(one.input_ids) for one in data.train) / len(data.train)
    return round(mean * options.batch_size * options.accumulate * processes.count())


def _arguments(options: FinetuneOptions, folder: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=options.steps,
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=options.accumulate,
        learning_rate=options.lr,
        lr_scheduler_type=_TRAINERS_NAMES[options.schedule],
        warmup_steps=min(options.warmup, options.steps - 1),
        seed=options.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,  # a NaN is to be seen, not replaced by an average
        save_strategy="steps",
        save_steps=options.save_every,
        save_total_limit=2,  # see MarkComplete
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to="none",
        use_cpu=processes.only_cpu(),
        ddp_find_unused_parameters=False,
    )


_TRAINERS_NAMES = {
    Schedule.LINEAR: "linear",
    Schedule.COSINE: "cosine",
    Schedule.CONSTANT: "constant_with_warmup",
}
