"""A dataclass's field as an option of a command, with its help and its limits."""

from __future__ import annotations

import typing
from enum import Enum
from pathlib import Path
from typing import Any

from typer import Option
from typer.models import OptionInfo

from quantlora.errors import ConfigError


class Dtype(str, Enum):
    """What is computed in, and what stays unquantized is kept in."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class TrainerName(str, Enum):
    """Who makes the steps."""

    TRANSFORMERS = "transformers"
    TRL = "trl"
    DPO = "dpo"
    KTO = "kto"
    ORPO = "orpo"
    GRPO = "grpo"

    @property
    def compares(self) -> bool:
        """Whether it learns from better and worse answers, not from right ones."""
        return self not in (TrainerName.TRANSFORMERS, TrainerName.TRL)


class MergeMode(str, Enum):
    """What becomes of packed weights that an adapter is merged into."""

    DEQUANTIZE = "dequantize"
    REQUANTIZE = "requantize"
    EXACT = "exact"


def option(panel: str, help_text: str, *names: str, **limits: Any) -> Any:
    """For ``Annotated``: an option in the group ``panel``; ``min`` and ``max`` are its limits."""
    if "min" in limits:
        # shorter than "<int range>": the limit is shown beside it
        limits.setdefault("metavar", "N")
    return Option(*names, help=help_text, rich_help_panel=panel, **limits)


def option_infos(options: type) -> dict[str, OptionInfo]:
    """The option of each field of a dataclass."""
    hints = typing.get_type_hints(options, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items()}


def option_name(field: str) -> str:
    """``--batch-size`` for ``batch_size``."""
    return "--" + field.replace("_", "-")


def flags(options: type) -> list[str]:
    """The names of the options that take no value, without their hyphens."""
    hints = typing.get_type_hints(options)
    return [option_name(name)[2:] for name, kind in hints.items() if kind is bool]


def settle(options: Any) -> None:
    """Let every field of ``options`` be of its type; a text is taken for a path or a choice.

    Raises:
        ConfigError: it is of another one; with the option's name.
    """
    for name, kind in typing.get_type_hints(type(options)).items():
        given = getattr(options, name)
        if isinstance(given, str) and isinstance(kind, type) and issubclass(kind, (Enum, Path)):
            try:
                object.__setattr__(options, name, kind(given))  # the dataclass is frozen
            except ValueError as error:
                raise ConfigError(
                    f"{option_name(name)} must be {_words(kind)}, got {given!r:.80}."
                ) from error
        elif not _fits(given, kind):
            raise ConfigError(f"{option_name(name)} must be {_words(kind)}, got {given!r:.80}.")


def _fits(value: Any, kind: Any) -> bool:
    kinds = typing.get_args(kind) or (kind,)
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, kinds) or (float in kinds and isinstance(value, int))


def _words(kind: Any) -> str:
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "one of " + ", ".join(choice.value for choice in kind)
    kinds = typing.get_args(kind) or (kind,)
    return " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)


def check_limits(options: Any) -> None:
    """Raise `ConfigError` where a field of ``options`` is beyond its limits."""
    for name, info in option_infos(type(options)).items():
        value = getattr(options, name)
        if value is None:
            continue
        if info.min is not None and not value >= info.min:
            raise ConfigError(f"{option_name(name)} must be at least {info.min}, got {value}.")
        if info.max is not None and not value <= info.max:
            raise ConfigError(f"{option_name(name)} must be at most {info.max}, got {value}.")


def plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value


def from_plain(value: Any, kind: Any) -> Any:
    """The value of a field of type ``kind``, from the one that JSON has."""
    is_text = isinstance(kind, type) and issubclass(kind, (Enum, Path))
    return kind(value) if is_text else value
