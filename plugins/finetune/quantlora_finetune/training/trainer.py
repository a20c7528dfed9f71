"""Training: a trainer on the wrapped model, with checkpoints to resume from."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors.torch import load_file
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    TrainerState,
)

from quantlora import MemoryUse, StopOnNaN
from quantlora_finetune.data.dataset import Collate, Dataset
from quantlora_finetune.data.examples import TrainingTokenizer
from quantlora_finetune.options.finetune_options import FinetuneOptions
from quantlora_finetune.run import processes
from quantlora_finetune.run.run_folder import RunFolder
from quantlora_finetune.training.checkpoints import MarkComplete, remove_incomplete
from quantlora_finetune.training.optimizers import optimizer_settings
from quantlora_finetune.training.progress import ShowProgress
from quantlora_finetune.training.reports import reports
from quantlora_finetune.training.schedules import scheduler_settings
from quantlora_finetune.training.speed import Speed
from quantlora_finetune.training.trainers import make_trainer

_REMEDY = (
    "Start anew, in another --output, with a lower --lr, a longer --warmup or --dtype float32; "
    "where the loss was not finite at step 1, look at the data and the model."
)
#: What trainers that compare answers log of them.
_TOLD = ("reward", "kl", "completions/mean_length")


@dataclass(frozen=True)
class Step:
    """What Trainer logs after a step; those of an earlier process are read from its checkpoint."""

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens_per_second: float
    #: What else the trainer logs, such as rewards.
    others: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Training:
    """What the training was: each step, the speed of all processes, and the memory of one."""

    steps: list[Step]
    resumed_at: int
    seconds: float
    tokens_per_second: float
    memory: MemoryUse | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "resumed_at_step": self.resumed_at,
            "seconds": round(self.seconds, 2),
            "tokens_per_second": round(self.tokens_per_second, 1),
            "steps": [asdict(step) for step in self.steps],
        }


def train(
    model: PreTrainedModel,
    data: Dataset,
    collate: Collate,
    tokenizer: TrainingTokenizer,
    options: FinetuneOptions,
    run: RunFolder,
    console: Console,
) -> Training:
    """Train to ``options.steps``, from the run's last complete checkpoint where it has one.

    Raises:
        NonFiniteError: a gradient became NaN or infinite; see `StopOnNaN`.
    """
    if processes.is_first():
        remove_incomplete(run.checkpoints)
    processes.wait_for_all()
    checkpoint, done = run.checkpoint, run.steps_done
    speed = Speed(processes.count())
    progress = ShowProgress(console, speed)
    callbacks = [
        StopOnNaN(_REMEDY),
        MarkComplete(),
        speed,
        progress,
        *reports(options.report_to, run.path),
    ]
    settings = _settings(options, run.checkpoints)
    trainer = make_trainer(options, model, settings, data.train, collate, tokenizer, callbacks)
    trainer.speed = speed
    vars(trainer)["lr_ratio"] = options.loraplus_lr_ratio
    trainer.remove_callback(PrinterCallback)
    try:
        if checkpoint is not None and done >= options.steps:
            trainer.state = _state_at(checkpoint, model)
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        progress.stop()
    return Training(_steps(trainer.state), done, speed.seconds, speed.of_all, trainer.memory())


def _steps(state: TrainerState) -> list[Step]:
    return [
        Step(
            int(log["step"]),
            log["loss"],
            log["learning_rate"],
            float(log.get("grad_norm", "nan")),
            log["tokens_per_second"],
            {name: value for name, value in log.items() if _is_told(name, value)},
        )
        for log in state.log_history
        if "loss" in log
    ]


def _is_told(name: str, value: Any) -> bool:
    return name.startswith(_TOLD) and isinstance(value, int | float) and math.isfinite(value)


def _state_at(checkpoint: Path, model: PreTrainedModel) -> TrainerState:
    """The record of a training that was complete, with its parameters put on ``model``."""
    model.load_state_dict(load_file(checkpoint / "model.safetensors"), strict=False)
    state: TrainerState = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    return state


def _settings(options: FinetuneOptions, folder: Path) -> dict[str, Any]:
    """For `TrainingArguments`."""
    return {
        "output_dir": str(folder),
        "max_steps": options.steps,
        "per_device_train_batch_size": options.batch_size,
        "gradient_accumulation_steps": options.accumulate,
        "learning_rate": options.lr,
        **optimizer_settings(options),
        **scheduler_settings(options),
        "seed": options.seed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # a NaN is to be seen, not replaced by an average
        "save_strategy": "steps",
        "save_steps": options.save_every,
        "save_total_limit": 2,  # see MarkComplete
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "report_to": "none",  # see `reports`
        "run_name": folder.parent.name,
        "use_cpu": processes.only_cpu(),
        "ddp_find_unused_parameters": False,
    }
