"""Regular expressions over module paths, matched within a time limit.

They come with adapter files too, and one that repeats within a repeat can take years on one path.
The `regex` module reads what `re` reads, and can be told when to stop.
"""

from __future__ import annotations

import regex

from quantlora.errors import TargetError

#: Seconds of processor time for one path; a usual expression takes microseconds.
LIMIT = 0.2


def full_match(expression: str, path: str) -> regex.Match[str] | None:
    """``re.fullmatch``; raises `TargetError` where it takes too long."""
    try:
        return regex.fullmatch(expression, path, timeout=LIMIT)
    except TimeoutError:
        raise _too_slow(expression, path) from None


def match(expression: str, path: str) -> regex.Match[str] | None:
    """``re.match``; raises `TargetError` where it takes too long."""
    try:
        return regex.match(expression, path, timeout=LIMIT)
    except TimeoutError:
        raise _too_slow(expression, path) from None


def _too_slow(expression: str, path: str) -> TargetError:
    return TargetError(
        f"the expression {expression!r} takes longer than {LIMIT} s on {path!r}: it tries too many "
        f"ways. Write it without a repeat within a repeat, or list the names."
    )
