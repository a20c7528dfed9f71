"""A setting of each layer as one usual value, and patterns for the layers that have another."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
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


def without_order(patterns: Mapping[str, T], paths: Iterable[str]) -> dict[str, T]:
    """``patterns`` that mean the same for ``paths`` in whatever order they stand.

    The keys of PEFT's files are sorted, and of several patterns that match the first counts.
    Where sorting would give one of ``paths`` another value, the paths themselves are named.
    """
    values = {path: by_pattern(path, patterns, None) for path in paths}
    in_order = dict(sorted(patterns.items()))
    if all(by_pattern(path, in_order, None) == value for path, value in values.items()):
        return dict(patterns)
    return {f"^{re.escape(path)}": value for path, value in values.items() if value is not None}


def by_pattern(path: str, patterns: Mapping[str, T], default: T) -> T:
    """A setting of the layer ``path``: the value of the first pattern that matches, or ``default``.

    Args:
        path: the layer's name in the model, ``"model.layers.0.self_attn.q_proj"``.
        patterns: values by regular expression, as in ``rank_pattern``: whole components at the end
            of the path must match, so ``"q_proj"`` is every ``q_proj``.
        default: the value of a layer that none matches.

    Raises:
        ConfigError: an expression that cannot be read.
        TargetError: one that takes too long on this path.
    """
    return next((value for key, value in patterns.items() if ends_in(path, key)), default)


def unmatched_patterns(patterns: Iterable[str], paths: Collection[str]) -> list[str]:
    """Those of ``patterns`` that match none of ``paths``, in order; mistyped ones, mostly.

    They match, and fail, as in `by_pattern`.
    """
    return [pattern for pattern in patterns if not any(ends_in(path, pattern) for path in paths)]


def ends_in(path: str, pattern: str) -> bool:
    """Whether whole components at the end of ``path`` match ``pattern``, as in PEFT."""
    plain = _plain(pattern)
    if plain is None:
        return match(rf"(.*\.)?({pattern})$", path) is not None
    start = len(path) - len(plain)
    if start < 0 or (start and (pattern[:1] == "^" or path[start - 1] != ".")):
        return False
    return all(wanted in (two, _ANY) for wanted, two in zip(plain, path[start:], strict=True))


#: Stands for any character; in no path.
_ANY = "\n"
_NAME = re.compile(r"\^?((?:[\w-]|\\?\.)*)", re.ASCII)


@lru_cache(maxsize=1 << 16)
def _plain(pattern: str) -> str | None:
    """A pattern that is a name or `as_pattern`'s, with `_ANY` for its dots; None for others.

    There may be one for each layer of a large model, and to compile each takes most of a minute.
    """
    found = _NAME.fullmatch(pattern)
    if found is None:
        return None
    # An escaped dot is one, the others stand for any character.
    return ".".join(part.replace(".", _ANY) for part in found[1].split("\\."))
