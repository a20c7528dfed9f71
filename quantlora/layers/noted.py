"""How a module with adapters stood when a checkpointed function first called it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from weakref import ReferenceType, ref

from torch import Tensor

from quantlora.formats.tensor_mark import TensorMark


class Standing(NamedTuple):
    """The adapters that are active, and whether they count at all (for all threads)."""

    active: tuple[str, ...]
    enabled: bool


class TensorState(NamedTuple):
    """A tensor, how it stood, and whether it was trained."""

    tensor: ReferenceType[Tensor]
    mark: TensorMark
    trained: bool

    @classmethod
    def of(cls, tensor: Tensor) -> TensorState:
        return cls(ref(tensor), TensorMark(tensor), tensor.requires_grad)

    def written(self, now: Tensor) -> bool:
        """Whether this is ``now``, and was changed in place since, or by its ``.data``."""
        same = self.tensor() is now
        return same and (self.mark.was_written(now) or self.mark.was_assigned(now))


@dataclass(frozen=True)
class Noted:
    """``module`` as it stood.

    Args:
        states: of the tensors of each adapter that counted, by name. The tensors themselves are
            others each time where a model is sharded.
        removals: how often an adapter of that name had been removed before.
    """

    module: Any
    standing: Standing
    merged: tuple[str, ...]
    states: dict[str, dict[str, TensorState]] = field(default_factory=dict)
    removals: dict[str, int] = field(default_factory=dict)

    def count(self, names: Iterable[str]) -> None:
        """Adapters ``names`` counted."""
        for name in names:
            if self.module.has_adapter(name) and name not in self.states:
                tensors = self.module.adapter_tensors(name)
                self.removals[name] = self.module.removals.get(name, 0)
                self.states[name] = {key: TensorState.of(tensor) for key, tensor in tensors.items()}

    def tensors(self) -> Iterator[tuple[Tensor, bool]]:
        """The tensors of those adapters now, and whether each was trained."""
        for name, states in self.states.items():
            for key, tensor in self.module.adapter_tensors(name).items():
                yield tensor, states[key].trained

    def change(self) -> str:
        """What has become of the module, for an error; empty where it can stand so again."""
        if self.module.left_model:
            return "the adapters were removed from the model"
        if self.merged != self.module.merged_adapters:
            names = {*self.merged} ^ {*self.module.merged_adapters}
            return f"adapter {', '.join(sorted(names))} was merged or unmerged"
        for name, before in self.removals.items():
            if self.module.removals.get(name, 0) != before:
                return f"adapter {name!r} was deleted, renamed or replaced"
            if not self.module.changes_itself and self._written(name):
                return f"adapter {name!r} was changed in place"
        return ""

    def _written(self, name: str) -> bool:
        """Whether autograd, which saves them without checkpoints, would refuse its tensors."""
        states = self.states[name]
        tensors = self.module.adapter_tensors(name)
        return any(states[key].written(tensor) for key, tensor in tensors.items())


@dataclass
class Notes:
    """What one call of a checkpointed function has noted, by ``id`` of the module.

    Args:
        number: of the call; modules made later have higher ones.
    """

    number: int
    noted: dict[int, Noted] = field(default_factory=dict)
