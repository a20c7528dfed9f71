"""Names for a message: what a mistyped one may have meant, and not too many of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

#: What papers and other trainers call the settings of an adapter.
FIELDS_ELSEWHERE = {
    "rank": "r", "lora_r": "r", "lora_rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout",
    "targets": "target_modules", "lora_target_modules": "target_modules", "dora": "use_dora",
    "rslora": "use_rslora", "init": "init_lora_weights",
}  # fmt: skip


def near(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Known names that resemble ``name``, by the whole name or by its last component."""
    names = list(known)
    by_tail: dict[str, str] = {}
    for candidate in names:
        by_tail.setdefault(candidate.rsplit(".", 1)[-1], candidate)
    whole = get_close_matches(name, names, count)
    tails = [tail for tail in get_close_matches(name, list(by_tail), count) if tail not in whole]
    return (whole + tails)[:count]


def unknown(
    kind: str, name: str, known: Iterable[str], elsewhere: Mapping[str, str] | None = None
) -> str:
    """``"unknown <kind> 'x'. Did you mean 'y'? Known: ..."``.

    Args:
        elsewhere: by names of other programs, in lower case, what is meant: named in place of what
            only looks alike.
    """
    names = sorted(known)
    meant = (elsewhere or {}).get(name.lower())
    close = [meant] if meant in names else near(name, names)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    return f"unknown {kind} {name!r}.{hint} Known: {', '.join(names) or 'none'}."


def some(names: Iterable[str], limit: int = 12) -> str:
    """``names`` for a message, not too many of them."""
    names = list(names)
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more or "none"
