"""What can be chosen in ``quantlora finetune``: every field is one option of the command.

The text shown by ``--help`` stands beside the field, and so do its limits: they hold for
`FinetuneOptions` in Python as for the command line.
"""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from quantlora.errors import ConfigError
from quantlora_finetune.options.choices import (
    ReportTo,
    Schedule,
    TrainerName,
    check_limits,
    from_plain,
    option,
    plain,
    settle,
)
from quantlora_finetune.options.data import DataOptions
from quantlora_finetune.options.model import ModelOptions

#: What NumPy takes.
LARGEST_SEED = 2**32 - 1
#: More would be a slip of the keyboard.
_MANY_EPOCHS = 1e6
_ADAPTER, _TRAINING, _RUN = "Adapter", "Training", "Output and resuming"


@dataclass(frozen=True)
class FinetuneOptions(DataOptions, ModelOptions):
    """The choices of one run; the defaults are the demonstration, which needs no account."""

    rank: Annotated[int, option(_ADAPTER, "Rank of the update.", "--rank", "-r", min=1)] = 8
    alpha: Annotated[
        float | None,
        option(_ADAPTER, "The update is scaled by alpha / rank. Default: twice the rank."),
    ] = None
    dropout: Annotated[
        float, option(_ADAPTER, "Share of the adapter's inputs dropped.", min=0.0, max=0.99)
    ] = 0.0
    target_modules: Annotated[
        str,
        option(
            _ADAPTER,
            "`all-linear`, names with commas between them (`q_proj,v_proj`), or a regular "
            "expression for the whole path.",
        ),
    ] = "all-linear"
    init: Annotated[
        str, option(_ADAPTER, "First values of A and B; `quantlora plugins` lists them.")
    ] = "default"
    variant: Annotated[str, option(_ADAPTER, "`lora`, or a variant such as `dora`.")] = "lora"

    steps: Annotated[int, option(_TRAINING, "Optimizer steps.", "--steps", "-s", min=1)] = 60
    epochs: Annotated[
        float | None,
        option(_TRAINING, "Passes over the data, in place of --steps."),
    ] = None
    batch_size: Annotated[int, option(_TRAINING, "Examples per forward pass.", min=1)] = 4
    accumulate: Annotated[
        int, option(_TRAINING, "Forward passes per step; saves memory.", min=1)
    ] = 1
    lr: Annotated[float, option(_TRAINING, "Highest learning rate.")] = 5e-4
    schedule: Annotated[
        Schedule,
        option(
            _TRAINING, "The rate after its warm-up: `linear`, `cosine`, `constant`.", metavar="NAME"
        ),
    ] = Schedule.LINEAR
    warmup: Annotated[int, option(_TRAINING, "Steps until the highest rate.", min=0)] = 3
    trainer: Annotated[
        TrainerName,
        option(
            _TRAINING,
            "`transformers`: its Trainer. `trl`: TRL's SFTTrainer, which also logs the accuracy "
            "and entropy of the predictions, and is slower. Both end with the same adapter.",
            metavar="NAME",
        ),
    ] = TrainerName.TRANSFORMERS
    gradient_checkpointing: Annotated[
        bool,
        option(
            _TRAINING, "Compute activations twice instead of keeping them.",
            "--gradient-checkpointing",
        ),
    ] = False  # fmt: skip
    seed: Annotated[int, option(_TRAINING, "Fixes first values, order and dropout.", min=0)] = 0

    output: Annotated[
        Path, option(_RUN, "Folder for the adapter and the report.", "--output", "-o")
    ] = Path("quantlora-output")
    report_to: Annotated[
        ReportTo,
        option(
            _RUN,
            "`tensorboard` writes each step's figures to OUTPUT/tensorboard while it trains; "
            "`none`: report.html at the end shows them all the same.",
            metavar="NAME",
        ),
    ] = ReportTo.NONE
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

        if self.seed > LARGEST_SEED:
            raise ConfigError(f"--seed must be at most {LARGEST_SEED}, got {self.seed}.")
        if self.epochs is not None and not 0 < self.epochs <= _MANY_EPOCHS:
            raise ConfigError(f"--epochs must be above 0, a number, got {self.epochs:g}.")

    @property
    def lora_alpha(self) -> float:
        return 2 * self.rank if self.alpha is None else self.alpha

    @property
    def targets(self) -> str | list[str]:
        """``target_modules`` as `LoraConfig` has it: a list of names, or a pattern."""
        is_pattern = re.search(r"[\\^$*+?()\[\]{}|]", self.target_modules)
        if is_pattern or self.target_modules == "all-linear":
            return self.target_modules
        return [name.strip() for name in self.target_modules.split(",") if name.strip()]

    def as_json(self) -> dict[str, Any]:
        """Plain values, to be read back by `from_json`."""
        return {field.name: plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> FinetuneOptions:
        hints = typing.get_type_hints(cls)
        return cls(**{name: from_plain(value, hints[name]) for name, value in values.items()})


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
