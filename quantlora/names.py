"""Names of adapters and layers: which are allowed, and messages about those that are not there."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

from quantlora.errors import ConfigError

#: Segments that torch.compile, FSDP and activation checkpointing put into module paths.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def plain_path(path: str) -> str:
    """``path`` in the model as it was before anything was wrapped around its modules."""
    return ".".join(part for part in path.split(".") if part not in _WRAPPERS)


def check_name(adapter: str) -> None:
    """A name becomes part of module paths, file keys and a folder's name."""
    from torch import nn

    if not isinstance(adapter, str) or not re.fullmatch(r"\w[\w-]*", adapter, re.ASCII):
        raise ConfigError(f"adapter_name {adapter!r}: use letters, digits, '_' and '-' only.")
    if adapter.startswith("__") or hasattr(nn.ModuleDict(), adapter):
        raise ConfigError(f"adapter_name {adapter!r} is taken by torch or quantlora: use another.")


def near(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Known names that resemble ``name``, by the whole name or by its last component."""
    names = list(known)
    by_tail: dict[str, str] = {}
    for one in names:
        by_tail.setdefault(one.rsplit(".", 1)[-1], one)
    whole = get_close_matches(name, names, count)
    tails = [tail for tail in get_close_matches(name, list(by_tail), count) if tail not in whole]
    return (whole + tails)[:count]


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """``"unknown <kind> 'x'. Did you mean 'y'? Known: ..."``."""
    names = sorted(known)
    close = near(name, names)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    return f"unknown {kind} {name!r}.{hint} Known: {', '.join(names) or 'none'}."
