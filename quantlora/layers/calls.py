"""What holds for the calls of one thread: the samples of a mixed batch, adapters that are off.

As attributes of the modules they would hold for every thread that calls the model. They are kept
where torch keeps its own state of a thread, which it hands on to the threads of a backward. While a
graph is traced they are attributes all the same, for a compiled graph can only depend on those.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from quantlora.layers.noted import Notes

_KEY = "quantlora_calls"
_MARKED = "_quantlora_marked"
_LOCK = threading.Lock()


@dataclass(frozen=True)
class Calls:
    """By ``id`` of the module: the adapter of each sample; where samples are the second dimension
    of a sequence; and whose adapters are off.

    Also the checkpointed calls that this thread is in: those that note which adapters are active,
    and the one that is computed again.
    """

    samples: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    time_first: frozenset[int] = frozenset()
    off: frozenset[int] = frozenset()
    marked: Mapping[int, Calls] = field(default_factory=dict)
    noting: tuple[Notes, ...] = ()
    again: Notes | None = None


#: Of a thread for which nothing holds.
NO_CALLS = Calls()


def calls() -> Calls:
    """Those of this thread."""
    if not torch._C._is_key_in_tls(_KEY):
        return NO_CALLS
    found: Calls = torch._C._get_obj_in_tls(_KEY)
    return found


def mark(model: object, before: Calls) -> None:
    """Note that this thread is in a forward of ``model``, after which ``before`` holds again."""
    store(replace(calls(), marked={**calls().marked, id(model): before}))
    _count(model, 1)


def may_be_marked(model: object) -> bool:
    """Whether this thread may have marked ``model``; a traced graph can ask whether any has."""
    return not torch.compiler.is_compiling() or _MARKED in vars(model)


def unmark(model: object) -> Calls | None:
    """Take the note away, and return what it says is to hold again."""
    others = dict(calls().marked)
    before = others.pop(id(model), None)
    if before is not None:
        _count(model, -1)
        store(replace(calls(), marked=others))
    return before


def _count(model: object, change: int) -> None:
    """Note on ``model`` itself how many threads have marked it, if any."""
    with _LOCK:
        marked = vars(model).pop(_MARKED, 0) + change
        if marked:
            vars(model)[_MARKED] = marked


def store(new: Calls) -> None:
    """Let ``new`` be those of this thread; the same object whenever nothing holds."""
    torch._C._stash_obj_in_tls(_KEY, NO_CALLS if new == NO_CALLS else new)
