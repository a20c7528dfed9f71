"""What must hold of a `LoraConfig` by itself, before any model is looked at."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import regex

from quantlora.config.field_types import misfits
from quantlora.errors import ConfigError

if TYPE_CHECKING:
    from quantlora.config.lora_config import LoraConfig

_BIASES = ("none", "all", "lora_only")


def check_config(config: LoraConfig) -> None:
    """Raise `ConfigError` for the first thing that is wrong."""
    for name, wanted in misfits(type(config), vars(config)).items():
        raise ConfigError(f"{name} must be {wanted}, got {getattr(config, name)!r}.")
    _check_numbers(config)
    _check_patterns(config)
    if config.bias not in _BIASES:
        raise ConfigError(f"bias must be one of {', '.join(_BIASES)}, got {config.bias!r}.")
    if config.peft_type != "LORA":
        raise ConfigError(f"peft_type {config.peft_type!r} is not LoRA: quantlora reads LORA only.")
    if config.layers_pattern and config.layers_to_transform is None:
        raise ConfigError("layers_pattern needs layers_to_transform: which indices of the list?")
    if config.layers_to_transform is not None and isinstance(config.target_modules, str):
        raise ConfigError(
            "layers_to_transform needs target_modules as a list of names; with a regular "
            "expression, put the indices into it."
        )
    _ = config.variant  # two variants at once are refused here


def _check_numbers(config: LoraConfig) -> None:
    ranks = {"r": config.r, **_entries("rank_pattern", config.rank_pattern)}
    for name, r in ranks.items():
        if r < 1:
            raise ConfigError(f"{name} must be a positive integer, got {r!r}.")
    alphas = {"lora_alpha": config.lora_alpha, **_entries("alpha_pattern", config.alpha_pattern)}
    for name, alpha in alphas.items():
        if not math.isfinite(alpha):
            raise ConfigError(f"{name} must be a finite number, got {alpha!r}.")
    if not 0.0 <= config.lora_dropout < 1.0:
        raise ConfigError(f"lora_dropout must be in [0, 1), got {config.lora_dropout!r}.")


def _entries(name: str, pattern: dict[str, int] | dict[str, float]) -> dict[str, float]:
    return {f"{name}[{key!r}]": value for key, value in pattern.items()}


def _check_patterns(config: LoraConfig) -> None:
    """Every regular expression compiles; lists of targets are names, not expressions."""
    whole = {name: getattr(config, name) for name in ("target_modules", "exclude_modules")}
    given: dict[str, Iterable[str]] = {n: [v] for n, v in whole.items() if isinstance(v, str)}
    given |= {"rank_pattern": config.rank_pattern, "alpha_pattern": config.alpha_pattern}
    for name, patterns in given.items():
        for pattern in patterns:
            try:
                regex.compile(pattern)
            except regex.error as error:
                raise ConfigError(
                    f"{name}: {pattern!r} is not a valid regular expression: {error}."
                ) from error
