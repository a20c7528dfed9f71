"""``--scheduler`` and ``--warmup``: the learning rate by step, above 0 from the first on."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch.optim.lr_scheduler import LambdaLR

from quantlora.errors import ConfigError
from quantlora.suggestions import unknown
from quantlora_finetune.options.training import TrainingOptions
from quantlora_finetune.training.optimizers import settings_in

#: Ours has the warm-up that was asked for, as the others.
_CONSTANT = {"constant": "constant_with_warmup"}
#: They ask for a measurement while it trains.
_MEASURING = ("reduce_lr_on_plateau", "greedy")
#: Settings without which a schedule is none.
_NEEDED = {
    "cosine_with_min_lr": ("min_lr_rate", "min_lr"),
    "cosine_warmup_with_min_lr": ("min_lr_rate", "min_lr"),
    "warmup_stable_decay": ("num_decay_steps",),
}


def check_scheduler(options: TrainingOptions) -> None:
    """Raise `ConfigError` where there is no such schedule, or its settings are others."""
    from transformers.trainer_utils import SchedulerType

    offered = [name.value for name in SchedulerType]
    if options.scheduler not in offered:
        raise ConfigError(unknown("--scheduler", options.scheduler, offered))
    if options.scheduler in _MEASURING:
        raise ConfigError(
            f"--scheduler {options.scheduler} follows measurements during the training; here is "
            f"measured before and after it. Use linear or cosine."
        )
    given, names = settings_in("--scheduler-args", options.scheduler_args), _settings_of(options)
    for name in given:
        if name not in names:
            raise ConfigError(unknown(f"setting of --scheduler {options.scheduler}", name, names))
    needed = _NEEDED.get(options.scheduler, ())
    if needed and not set(needed) & set(given):
        raise ConfigError(
            f"--scheduler {options.scheduler} needs --scheduler-args {needed[0]}=..., for example "
            f"{needed[0]}={'0.1' if 'rate' in needed[0] else options.steps // 5 or 1}."
        )


def _settings_of(options: TrainingOptions) -> list[str]:
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

    make: Any = TYPE_TO_SCHEDULER_FUNCTION[_name(options)]  # type: ignore[index]
    ours = ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch")
    return [name for name in inspect.signature(make).parameters if name not in ours]


def _name(options: TrainingOptions) -> str:
    return _CONSTANT.get(options.scheduler, options.scheduler)


def scheduler_settings(options: TrainingOptions) -> dict[str, Any]:
    """For `TrainingArguments`."""
    settings = settings_in("--scheduler-args", options.scheduler_args)
    return {
        "lr_scheduler_type": _name(options),
        "lr_scheduler_kwargs": settings or None,
        "warmup_steps": options.warmup_steps,
    }


def starts_above_zero(scheduler: LambdaLR, warmup: int) -> LambdaLR:
    """The same schedule with a warm-up of 1, 2, ... of ``warmup + 1`` parts.

    Transformers begins with 0 of ``warmup``: a whole step that changes nothing.
    """
    factors: list[Callable[[int], float]] = list(scheduler.lr_lambdas)
    if warmup < 1 or any(factor(0) > 0 for factor in factors):
        return scheduler
    return LambdaLR(scheduler.optimizer, [_warmed(factor, warmup) for factor in factors])


def _warmed(factor: Callable[[int], float], warmup: int) -> Callable[[int], float]:
    def warmed(step: int) -> float:
        return (step + 1) / (warmup + 1) if step < warmup else factor(step)

    return warmed
