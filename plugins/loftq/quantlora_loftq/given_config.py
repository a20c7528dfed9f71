"""A config of ours from what a user gave for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from quantlora import ConfigError

T = TypeVar("T")


def from_given(kind: type[T], given: Any, name: str) -> T:
    """``given`` as the dataclass ``kind``: ours as it is, a dict, or PEFT's object, by its fields.

    Args:
        name: of the field that the user gave it as.
    """
    if isinstance(given, kind):
        return given
    fields = dict(given) if isinstance(given, Mapping) else dict(vars(given))
    known_fields = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    if unknown := sorted(set(fields) - set(known_fields)):
        raise ConfigError(
            f"{name} has unknown fields {', '.join(unknown)}; known: {', '.join(known_fields)}."
        )
    return kind(**fields)
