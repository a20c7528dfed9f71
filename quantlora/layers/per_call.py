"""`PerCall`: a module with adapters, and what is told to it for the calls of one thread."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from quantlora.layers.calls import calls, store
from quantlora.layers.noted import Standing
from quantlora.layers.plain_owners import refuse_plain_owner
from quantlora.layers.recomputation import (
    follow_checkpoints,
    next_number,
    note_traced,
    standing,
)

follow_checkpoints()  # here, for a model may also come out of a pickle


class PerCall:
    """A module with adapters that may be told other adapters for the calls of one thread."""

    path: str
    active: tuple[str, ...]
    merged_adapters: tuple[str, ...]
    number = -1
    #: Whether the adapters were removed, and this is no part of the model any more.
    left_model = False
    _enabled = True
    _traced_off = False
    _traced_samples: tuple[str, ...] | None = None
    _traced_time_first = False
    #: From so many dimensions on the input can be a sequence.
    sequence_dims = 3

    def __init__(self) -> None:
        super().__init__()
        self.number = next_number()

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        refuse_plain_owner(self.path)
        super()._save_to_state_dict(*args, **kwargs)  # type: ignore[misc]

    @property
    def enabled(self) -> bool:
        """Whether the adapters count; set for all threads, switched off for one by `switch_off`."""
        if torch.compiler.is_compiling():
            return note_traced(self) and self._enabled and not self._traced_off
        return standing(self).enabled and id(self) not in calls().off

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self._enabled = value

    @property
    def enabled_for_all(self) -> bool:
        """The same, for all threads."""
        return self._enabled

    @property
    def standing(self) -> Standing:
        """Which adapters are active: for all, but those of the first time in what is recomputed."""
        traced = torch.compiler.is_compiling()
        return Standing(self.active, self._enabled) if traced else standing(self)

    def traced_standing(self) -> tuple[Any, ...]:
        """All that a compiled graph depends on."""
        told = self._traced_off, self._traced_samples, self._traced_time_first
        return self.active, self._enabled, told, self.merged_adapters, self.left_model

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
    store(replace(calls(), samples={**others, **given}, time_first=turned))
    for module in modules:
        module._traced_samples = names
        module._traced_time_first = id(module) in later


def switch_off(things: Collection[Any], off: bool) -> None:
    """From now on, in this thread, the adapters of ``things`` are off, or as they are for all."""
    keys = {id(thing) for thing in things}
    store(replace(calls(), off=calls().off | keys if off else calls().off - keys))
    for thing in things:
        if isinstance(thing, PerCall):
            thing._traced_off = off
