"""Options of a format that differ by layer, ``bits_pattern`` and the like, for one layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from quantlora.config.patterns import unmatched_patterns
from quantlora.errors import BackendError
from quantlora.wrapping.plan import PlannedLayer


def options_of(options: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The settings for the layer at ``path``: of patterns those that match it."""
    return {
        name: {p: v for p, v in value.items() if not unmatched_patterns([p], [path])}
        if _is_pattern(name, value)
        else value
        for name, value in options.items()
    }


def check_patterns(options: Mapping[str, Any], plan: Iterable[PlannedLayer]) -> None:
    """Raise `BackendError` for a pattern that matches no layer or stack of the plan."""
    paths = [
        name if planned.target.parameters else planned.path
        for planned in plan
        for name in [f"{planned.path}.{own}" for own in planned.target.parameters or ("",)]
    ]
    for name, value in options.items():
        for pattern in unmatched_patterns(value, paths) if _is_pattern(name, value) else ():
            raise BackendError(f"{name} {pattern!r} matches none of the layers to pack.")


def _is_pattern(name: str, value: object) -> bool:
    return name.endswith("_pattern") and isinstance(value, Mapping)
