"""What can be chosen in ``quantlora finetune``: every field is one option of the command.

The text shown by ``--help`` stands beside the field, and so do its limits: they hold for
`FinetuneOptions` in Python as for the command line.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from quantlora.errors import ConfigError
from quantlora_finetune.options.adapter import AdapterOptions
from quantlora_finetune.options.choices import (
    TrainerName,
    check_limits,
    from_plain,
    option,
    option_name,
    plain,
    settle,
)
from quantlora_finetune.options.comparing import ComparingOptions
from quantlora_finetune.options.data import DataOptions
from quantlora_finetune.options.model import ModelOptions
from quantlora_finetune.options.training import TrainingOptions

#: What NumPy takes.
LARGEST_SEED = 2**32 - 1
#: More would be a slip of the keyboard.
_MANY_EPOCHS = 1e6
_RUN = "Output and resuming"
#: Fields of older records, and what they are called now.
_RENAMED = {"schedule": "scheduler"}


@dataclass(frozen=True)
class FinetuneOptions(ComparingOptions, TrainingOptions, AdapterOptions, DataOptions, ModelOptions):
    """The choices of one run; the defaults are the demonstration, which needs no account."""

    output: Annotated[
        Path, option(_RUN, "Folder for the adapter and the report.", "--output", "-o")
    ] = Path("quantlora-output")
    report_to: Annotated[
        str,
        option(
            _RUN,
            "Who is told of each step while it trains: `tensorboard` (in OUTPUT/tensorboard), "
            "`wandb`, `trackio`, `mlflow` or another one of Transformers' names; commas between "
            "them. `none`: report.html at the end shows all the same.",
            metavar="NAME",
        ),
    ] = "none"
    resume: Annotated[
        bool,
        option(_RUN, "Continue the run in --output from its last checkpoint.", "--resume"),
    ] = False
    save_every: Annotated[int, option(_RUN, "Steps from one checkpoint to the next.", min=1)] = 10

    def __post_init__(self) -> None:
        settle(self)
        check_limits(self)
        if not 0 < self.lr <= 1:
            raise ConfigError(
                f"--lr must be above 0 and at most 1, got {self.lr:g}; 1e-4 to 1e-3 is usual."
            )

        self._check_batch_and_warmup()
        self._check_trainer()
        if self.seed > LARGEST_SEED:
            raise ConfigError(f"--seed must be at most {LARGEST_SEED}, got {self.seed}.")
        if self.epochs is not None and not 0 < self.epochs <= _MANY_EPOCHS:
            raise ConfigError(f"--epochs must be above 0, a number, got {self.epochs:g}.")

    def _check_batch_and_warmup(self) -> None:
        if self.batch_size < 0:
            raise ConfigError(f"--batch-size must be at least 1, or auto, got {self.batch_size}.")
        if self.warmup > 1 and self.warmup != int(self.warmup):
            raise ConfigError(
                f"--warmup is a whole number of steps, or a share below 1, got {self.warmup:g}."
            )

    def _check_trainer(self) -> None:
        """Raise `ConfigError` where the trainer and another option do not go together."""
        name = f"--trainer {self.trainer.value}"
        for field in ("packing", "train_on_prompt"):
            if self.trainer.compares and getattr(self, field):
                raise ConfigError(f"{name} has no {option_name(field)}: it compares answers.")
        if (self.reward is None) == (self.trainer is TrainerName.GRPO):
            raise ConfigError(
                "--trainer grpo needs --reward module:function, which rewards answers; no other "
                "trainer takes it."
            )
        if self.trainer is TrainerName.GRPO and self.batch_size % self.generations:
            raise ConfigError(
                f"--batch-size {self.batch_size} is no multiple of --generations "
                f"{self.generations}: a batch has whole groups of answers to a prompt."
            )
        if self.trainer is TrainerName.KTO and self.batch_size == 1:
            raise ConfigError("--trainer kto needs a --batch-size of at least 2: TRL mixes them.")

    def as_json(self) -> dict[str, Any]:
        """Plain values, to be read back by `from_json`."""
        return {field.name: plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> FinetuneOptions:
        hints = typing.get_type_hints(cls)
        named = {renamed(name): value for name, value in values.items()}
        return cls(**{name: from_plain(value, hints[name]) for name, value in named.items()})


def renamed(field: str) -> str:
    """What a field of an older record is called now."""
    return _RENAMED.get(field, field)


def with_steps(options: FinetuneOptions, examples: int, processes: int) -> FinetuneOptions:
    """``options`` with the steps that ``epochs`` passes over ``examples`` take, the last whole."""
    if options.epochs is None:
        return options
    in_a_step = options.batch_size * options.accumulate * processes
    steps = max(1, math.ceil(options.epochs * examples / in_a_step))
    return dataclasses.replace(options, steps=steps, epochs=None)


def check_given(given: Collection[str]) -> None:
    """Raise `ConfigError` where two of the options that a user gave say the same thing."""
    if {"epochs", "steps"} <= set(given):
        raise ConfigError("--epochs and --steps both say how long to train: give one of them.")
    parts = [name for name in ("eval_data", "validation", "held_out") if name in given]
    if len(parts) > 1:
        names = " and ".join(map(option_name, parts))
        raise ConfigError(f"{names} both say what is measured on: give one of them.")
