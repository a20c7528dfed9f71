"""What holds for the calls of one thread: the samples of a mixed batch, adapters that are off.

As attributes of the modules they would hold for every thread that calls the model. They are kept
where torch keeps its own state of a thread, which it hands on to the threads of a backward: there
gradient checkpointing computes forward again. While a graph is traced they are attributes all the
same, for a compiled graph can only depend on those.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from quantlora.layers.plain_owners import refuse_plain_owner

_KEY = "quantlora_calls"
_MARKED = "_quantlora_marked"
_LOCK = threading.Lock()


@dataclass(frozen=True)
class Calls:
    """By ``id`` of the module: the adapter of each sample; where samples are the second dimension
    of a sequence; and whose adapters are off.
    """

    samples: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    time_first: frozenset[int] = frozenset()
    off: frozenset[int] = frozenset()
    marked: frozenset[int] = frozenset()


_NONE = Calls()


def calls() -> Calls:
    """Those of this thread."""
    if not torch._C._is_key_in_tls(_KEY):
        return _NONE
    found: Calls = torch._C._get_obj_in_tls(_KEY)
    return found


class PerCall:
    """A module with adapters that may be told other adapters for the calls of one thread."""

    path: str
    _enabled = True
    _traced_off = False
    _traced_samples: tuple[str, ...] | None = None
    _traced_time_first = False
    #: From so many dimensions on the input can be a sequence.
    sequence_dims = 3

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        refuse_plain_owner(self.path)
        super()._save_to_state_dict(*args, **kwargs)  # type: ignore[misc]

    @property
    def enabled(self) -> bool:
        """Whether the adapters count; set for all threads, switched off for one by `switch_off`."""
        if torch.compiler.is_compiling():
            return self._enabled and not self._traced_off
        return self._enabled and id(self) not in calls().off

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self._enabled = value

    @property
    def sample_adapters(self) -> tuple[str, ...] | None:
        """The adapter of each sample in a mixed batch."""
        if torch.compiler.is_compiling():
            return self._traced_samples
        return calls().samples.get(id(self))

    def sample_dim(self, x: Tensor) -> int:
        """The dimension of ``x`` that counts the samples."""
        compiled = torch.compiler.is_compiling()
        later = self._traced_time_first if compiled else id(self) in calls().time_first
        return int(later and x.dim() >= self.sequence_dims)


def give_samples(
    modules: Collection[PerCall],
    names: tuple[str, ...] | None,
    time_first: Collection[PerCall] = (),
) -> None:
    """From now on, in this thread, sample i goes through ``names[i]``; None: no mixed batch.

    Args:
        time_first: those of ``modules`` that compute with (time, batch, features).
    """
    keys, later = ({id(one) for one in some} for some in (modules, time_first))
    others = {key: one for key, one in calls().samples.items() if key not in keys}
    given = {} if names is None else dict.fromkeys(keys, names)
    turned = calls().time_first - keys | later
    _store(replace(calls(), samples={**others, **given}, time_first=turned))
    for module in modules:
        module._traced_samples = names
        module._traced_time_first = id(module) in later


def switch_off(things: Collection[Any], off: bool) -> None:
    """From now on, in this thread, the adapters of ``things`` are off, or as they are for all."""
    keys = {id(thing) for thing in things}
    _store(replace(calls(), off=calls().off | keys if off else calls().off - keys))
    for thing in things:
        if isinstance(thing, PerCall):
            thing._traced_off = off


def mark(model: object) -> None:
    """Note that this thread is in a forward of ``model`` which a hook has to close."""
    _store(replace(calls(), marked=calls().marked | {id(model)}))
    _count(model, 1)


def may_be_marked(model: object) -> bool:
    """Whether this thread may have marked ``model``; a traced graph can ask whether any has."""
    return not torch.compiler.is_compiling() or _MARKED in vars(model)


def unmark(model: object) -> bool:
    """Take the note away; whether there was one."""
    was = id(model) in calls().marked
    if was:
        _count(model, -1)
        _store(replace(calls(), marked=calls().marked - {id(model)}))
    return was


def _count(model: object, change: int) -> None:
    """Note on ``model`` itself how many threads have marked it, if any."""
    with _LOCK:
        marked = vars(model).pop(_MARKED, 0) + change
        if marked:
            vars(model)[_MARKED] = marked


def _store(new: Calls) -> None:
    torch._C._stash_obj_in_tls(_KEY, new)
