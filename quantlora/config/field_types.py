"""Whether a value has the type that a dataclass states for its field."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any


def misfits(cls: type, fields: Mapping[str, Any]) -> dict[str, str]:
    """For each of ``fields`` whose value is not of its type in ``cls``: the type, in words."""
    hints = _hints(cls)
    return {name: words(hints[name]) for name, v in fields.items() if not fits(v, hints[name])}


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def fits(value: Any, hint: Any) -> bool:
    """Whether ``value`` is of type ``hint``; an int will do for a float, a bool for no number."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, choice) for choice in args)
    if origin is list:
        return isinstance(value, list) and all(fits(item, args[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(item, args[1]) for item in value.values())
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def words(hint: Any) -> str:
    """A type as its annotation has it."""
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
