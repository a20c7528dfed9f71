"""A setting of each layer as one usual value, and patterns for the layers that have another."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import TypeVar

from quantlora.config.expressions import match

T = TypeVar("T")


def as_pattern(values: Mapping[str, T]) -> tuple[T, dict[str, T]]:
    """The most common of ``values`` (by layer path), and a ``rank_pattern`` for the others.

    The patterns name whole paths, so none of them picks another layer too.
    """
    usual = Counter(values.values()).most_common(1)[0][0]
    others = {path: value for path, value in values.items() if value != usual}
    return usual, {f"^{re.escape(path)}": value for path, value in others.items()}


def by_pattern(path: str, patterns: Mapping[str, T], default: T) -> T:
    """The value for ``path`` in a ``rank_pattern`` or ``alpha_pattern``: the first that matches."""
    return next((value for key, value in patterns.items() if ends_in(path, key)), default)


def ends_in(path: str, pattern: str) -> bool:
    """Whether whole components at the end of ``path`` match ``pattern``, as in PEFT."""
    return match(rf"(.*\.)?({pattern})$", path) is not None
