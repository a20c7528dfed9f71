"""Regular expressions over module paths, matched within a time limit.

They come with adapter files too, and one that repeats within a repeat can take years on one path.
The `regex` module reads what `re` reads, and can be told when to stop.
"""

from __future__ import annotations

from functools import lru_cache

import regex

from quantlora.errors import ConfigError, TargetError

#: Seconds of processor time for one path; a usual expression takes microseconds.
LIMIT = 0.2


@lru_cache(maxsize=1 << 16)
def compiled(expression: str) -> regex.Pattern[str]:
    """The expression, compiled once; `regex` itself keeps 500 and then begins anew.

    Raises `ConfigError` where it is none, or nested deeper than can be read.
    """
    try:
        return regex.compile(expression)
    except (regex.error, RecursionError, OverflowError, ValueError) as error:
        raise ConfigError(
            f"{shortened(expression)} is not a valid regular expression: {error}."
        ) from error


def shortened(value: object) -> str:
    """``repr(value)``, of a long one the start: a file may hold a million names or digits."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no numbers of more than 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 200 else f"{text[:200]}... ({len(text)} characters)"


def full_match(expression: str, path: str) -> regex.Match[str] | None:
    """``re.fullmatch``; raises `TargetError` where it takes too long."""
    try:
        return compiled(expression).fullmatch(path, timeout=LIMIT)
    except TimeoutError:
        raise _too_slow(expression, path) from None


def match(expression: str, path: str) -> regex.Match[str] | None:
    """``re.match``; raises `TargetError` where it takes too long."""
    try:
        return compiled(expression).match(path, timeout=LIMIT)
    except TimeoutError:
        raise _too_slow(expression, path) from None


def _too_slow(expression: str, path: str) -> TargetError:
    return TargetError(
        f"the expression {expression!r} takes longer than {LIMIT} s on {path!r}: it tries too many "
        f"ways. Write it without a repeat within a repeat, or list the names."
    )
