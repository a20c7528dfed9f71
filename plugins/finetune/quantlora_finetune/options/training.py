"""The options that say how it is trained: steps, batches, optimizer, learning rate, trainer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from typer import BadParameter

from quantlora_finetune.options.choices import TrainerName, option

_TRAINING = "Training"
#: `batch_size` as it is to be found from the memory.
AUTO = 0


def batch_size(given: str | int) -> int:
    """What ``--batch-size`` means: a number of examples, or ``auto``."""
    if str(given).lower() == "auto":
        return AUTO
    if not str(given).isdecimal() or int(given) < 1:
        raise BadParameter(f"{given} is no number of examples: at least 1, or auto.")
    return int(given)


@dataclass(frozen=True)
class TrainingOptions:
    """Steps, batches, optimizer and learning rate."""

    steps: Annotated[int, option(_TRAINING, "Optimizer steps.", "--steps", "-s", min=1)] = 60
    epochs: Annotated[
        float | None,
        option(_TRAINING, "Passes over the data, in place of --steps."),
    ] = None
    batch_size: Annotated[
        int,
        option(
            _TRAINING,
            "Examples per forward pass; `auto`: as many as fit by the memory prediction, up to 64.",
            parser=batch_size,
            metavar="N|auto",
        ),
    ] = 4
    accumulate: Annotated[
        int, option(_TRAINING, "Forward passes per step; saves memory.", min=1)
    ] = 1
    lr: Annotated[float, option(_TRAINING, "Highest learning rate.")] = 5e-4
    optim: Annotated[
        str,
        option(
            _TRAINING,
            "`adamw`, or another one of Transformers' names: `adamw_8bit`, `paged_adamw_8bit`, "
            "`adafactor`, `lion_8bit`, `sgd`, ...",
            metavar="NAME",
        ),
    ] = "adamw"
    optim_args: Annotated[
        str | None,
        option(_TRAINING, "Settings of it, as `momentum=0.9`.", metavar="NAME=VALUE,..."),
    ] = None
    loraplus_lr_ratio: Annotated[
        float | None,
        option(_TRAINING, "LoRA+: B's learning rate is so many times A's; 16 is usual.", min=0.001),
    ] = None
    weight_decay: Annotated[float, option(_TRAINING, "Of the adapter.", min=0.0)] = 0.0
    max_grad_norm: Annotated[
        float, option(_TRAINING, "Longer gradients are scaled down to it; 0: none is.", min=0.0)
    ] = 1.0
    scheduler: Annotated[
        str,
        option(
            _TRAINING,
            "The rate after its warm-up: `linear`, `cosine`, `constant`, or another one of "
            "Transformers' names.",
            metavar="NAME",
        ),
    ] = "linear"
    scheduler_args: Annotated[
        str | None,
        option(_TRAINING, "Settings of it, as `min_lr_rate=0.1`.", metavar="NAME=VALUE,..."),
    ] = None
    warmup: Annotated[
        float,
        option(_TRAINING, "Steps until the highest rate, or a share of all below 1.", min=0.0),
    ] = 3
    trainer: Annotated[
        TrainerName,
        option(
            _TRAINING,
            "`transformers`: its Trainer. `trl`: TRL's SFTTrainer. `dpo`, `orpo`: of a chosen and "
            "a rejected answer, the chosen one is made likelier. `kto`: the same of answers with a "
            "label. `grpo`: by --reward. docs/finetune.md tells more.",
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

    @property
    def warmup_steps(self) -> int:
        """Whole steps, at most all but the last."""
        steps = self.warmup if self.warmup >= 1 else -(-self.warmup * self.steps // 1)
        return min(round(steps), self.steps - 1)
