"""`AdapterModule`: what holds adapters by name, in the place of one of the model's own modules.

LoRA layers are such, and modules trained in full (`ModulesToSaveWrapper`). Whatever switches
adapters knows this class alone. What holds for the calls of one thread is in ``calls.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from quantlora.errors import AdapterError
from quantlora.files.plain_owners import refuse_plain_owner
from quantlora.layers.calls import NO_CALLS, calls, store
from quantlora.layers.merged_state import expect_note, note_merged, noted_merged
from quantlora.layers.noted import Standing
from quantlora.layers.recomputation import follow_checkpoints, next_number, note_traced, standing
from quantlora.layers.sub_batch import SubBatches, samples_by_adapter, sub_batches
from quantlora.suggestions import unknown

follow_checkpoints()  # here, for a model may also come out of a pickle


class AdapterModule(nn.Module):
    """Adapters by name: which are active, which are merged, and which samples go through which.

    A subclass says what it keeps by adapter name (`by_name`) and what of it is in a file
    (`adapter_tensors`).
    """

    #: From so many dimensions on the input can be a sequence.
    sequence_dims = 3
    #: Whether a forward may change its adapters' tensors in place.
    changes_itself = False
    number = -1
    #: Whether the adapters were removed, and this is no part of the model any more.
    left_model = False
    _enabled = True
    _traced_off = False
    _traced_samples: tuple[str, ...] | None = None
    _traced_time_first = False

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self.number = next_number()
        self.active: tuple[str, ...] = ()
        self.merged_adapters: tuple[str, ...] = ()
        #: How often an adapter of a name was removed, or given another one.
        self.removals: dict[str, int] = {}

    # -- what a subclass keeps

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters that this module has."""
        raise NotImplementedError

    def has_adapter(self, name: str) -> bool:
        """Whether adapter ``name`` is here, without going over hundreds of others."""
        return name in self.adapters

    def by_name(self) -> dict[str, Any]:
        """All that is kept by adapter name, by the name of the attribute it is kept in."""
        raise NotImplementedError

    def adapter_tensors(self, name: str) -> Mapping[str, Tensor]:
        """The adapter's tensors by their name in an adapter file, e.g. ``lora_A.weight``."""
        raise NotImplementedError

    def is_trained(self, name: str, key: str) -> bool:
        """Whether tensor ``key`` of adapter ``name`` is trained while the adapter is active."""
        return True

    # -- of embeddings whose weight another layer has too (`TiedLayer`)

    def tied_output(self, head: nn.Module, x: Tensor) -> Tensor:
        """What ``head`` computes for ``x`` with this one's weight and adapters."""
        raise NotImplementedError

    def tied_tensors(self, name: str, value: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """What PEFT's file of adapter ``name`` says of the head: this one's own once more.

        Args:
            value: gives a parameter's value, gathered where it is sharded.
        """
        raise NotImplementedError

    # -- which adapters there are

    def activate(self, names: Iterable[str]) -> None:
        """Make those of ``names`` that this module has the active ones."""
        self.active = tuple(name for name in names if self.has_adapter(name))

    def remove_adapter(self, name: str) -> None:
        self._known(name)
        self.removals[name] = self.removals.get(name, 0) + 1
        for kept in self.by_name().values():
            if name in kept:
                del kept[name]
        self.active = tuple(adapter for adapter in self.active if adapter != name)

    def rename_adapter(self, old: str, new: str) -> None:
        self._known(old)
        self.removals[old] = self.removals.get(old, 0) + 1
        for kept in self.by_name().values():
            if old in kept:
                kept[new] = kept[old]
                del kept[old]
        self.active = tuple(new if adapter == old else adapter for adapter in self.active)
        self.merged_adapters = tuple(
            new if adapter == old else adapter for adapter in self.merged_adapters
        )

    def _known(self, name: str) -> None:
        if not self.has_adapter(name):
            raise AdapterError(f"{self.path}: {unknown('adapter', name, self.adapters)}")

    # -- which of them count

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
    def active_unmerged(self) -> tuple[str, ...]:
        """Adapters that add to the output: the active ones that are not folded in already."""
        if not self.enabled:
            return ()
        return tuple(name for name in self.standing.active if name not in self.merged_adapters)

    @property
    def adapters_for_all(self) -> tuple[str, ...] | None:
        """`active_unmerged` outside of traced graphs, quickly; None in a mixed batch."""
        if calls() is not NO_CALLS:
            if self.sample_adapters is not None and self.enabled:
                return None
            return self.active_unmerged
        if not self._enabled:
            return ()
        return self.active_unmerged if self.merged_adapters else self.active

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

    def adapters_by_sample(self, x: Tensor, dim: int = 0) -> list[tuple[str, Tensor | None]]:
        """Which adapters add to which samples of ``x`` (None: all of them)."""
        if self.sample_adapters is None or not self.enabled:
            return [(name, None) for name in self.active_unmerged]
        return list(sub_batches(self.sample_adapters, self.adapters, x, self.path, dim))

    def add_deltas(
        self, y: Tensor, delta: Callable[..., Tensor], given: tuple[Tensor, ...], dim: int = 0
    ) -> Tensor:
        """``y`` plus ``delta(name, *given)`` of each adapter that counts, for its own samples.

        Args:
            given: the layer's input first; each has the samples in dimension ``dim``, as y has.
        """
        if self.sample_adapters is None or not self.enabled:
            for name in self.active_unmerged:
                y = y + delta(name, *given).to(y.dtype)
            return y
        batch = self.sub_batches(given[0], dim)
        parts = zip(*(batch.split(tensor, dim) for tensor in given), strict=True)
        deltas = [delta(name, *own) for name, own in zip(batch.names, parts, strict=True)]
        return batch.add(y, deltas, dim) if deltas else y

    def sub_batches(self, x: Tensor, dim: int) -> SubBatches:
        """How the samples of the input ``x`` of a mixed batch belong to the adapters."""
        names = self.sample_adapters or ()
        samples = samples_by_adapter(names, self.adapters, x, self.path, dim)
        return SubBatches.of(samples, x, dim)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        """As torch's, with a note of what is merged into the tensors."""
        refuse_plain_owner(self.path)
        super()._save_to_state_dict(destination, prefix, keep_vars)
        note_merged(destination, prefix, self.merged_adapters)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, local_metadata: dict[str, Any], *rest: Any
    ) -> None:
        """As torch's, where both sides have the same merged."""
        theirs = noted_merged(state_dict, prefix, local_metadata)
        if theirs is None:
            theirs = () if self._is_unmerged(state_dict, prefix) else self.merged_adapters
        if theirs != self.merged_adapters:
            mine, others = (", ".join(names) or "none" for names in (self.merged_adapters, theirs))
            raise AdapterError(
                f"{self.path}: the state dict is from a model with merged adapters: {others}, and "
                f"in this one are merged: {mine}. An adapter would count twice or not at all: "
                f"call quantlora.unmerge(model) before state_dict() and before load_state_dict()."
            )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)
        expect_note(prefix, rest[2])

    def _is_unmerged(self, state_dict: Mapping[str, Any], prefix: str) -> bool:
        """Whether ``state_dict``, which may not say it, has the base from before the merge."""
        return False


def switch_off(things: Collection[Any], off: bool) -> None:
    """From now on, in this thread, the adapters of ``things`` are off, or as they are for all."""
    keys = {id(thing) for thing in things}
    store(replace(calls(), off=calls().off | keys if off else calls().off - keys))
    for thing in things:
        if isinstance(thing, AdapterModule):
            thing._traced_off = off
