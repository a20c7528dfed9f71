"""Names for a message: what a mistyped one may have meant, and not too many of them."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def near(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Known names that resemble ``name``, by the whole name or by its last component."""
    names = list(known)
    by_tail: dict[str, str] = {}
    for candidate in names:
        by_tail.setdefault(candidate.rsplit(".", 1)[-1], candidate)
    whole = get_close_matches(name, names, count)
    tails = [tail for tail in get_close_matches(name, list(by_tail), count) if tail not in whole]
    return (whole + tails)[:count]


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """``"unknown <kind> 'x'. Did you mean 'y'? Known: ..."``."""
    names = sorted(known)
    close = near(name, names)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    return f"unknown {kind} {name!r}.{hint} Known: {', '.join(names) or 'none'}."


def some(names: Iterable[str], limit: int = 12) -> str:
    """``names`` for a message, not too many of them."""
    names = list(names)
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more or "none"
