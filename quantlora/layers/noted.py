"""How a module with adapters stood when a checkpointed function first called it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor


class Standing(NamedTuple):
    """The adapters that are active, and whether they count at all (for all threads)."""

    active: tuple[str, ...]
    enabled: bool


@dataclass(frozen=True)
class Noted:
    """``module`` as it stood.

    Args:
        trained: by name of the adapters that counted, and by that of their tensors, whether each
            was trained. The tensors themselves are others each time where a model is sharded.
        removals: how often an adapter of that name had been removed before.
    """

    module: Any
    standing: Standing
    merged: tuple[str, ...]
    trained: dict[str, dict[str, bool]] = field(default_factory=dict)
    removals: dict[str, int] = field(default_factory=dict)

    def count(self, names: Iterable[str]) -> None:
        """Adapters ``names`` counted."""
        for name in names:
            if name in self.module.adapters and name not in self.trained:
                own = self.module.adapter_tensors(name)
                self.removals[name] = self.module.removals.get(name, 0)
                self.trained[name] = {key: one.requires_grad for key, one in own.items()}

    def tensors(self) -> Iterator[tuple[Tensor, bool]]:
        """The tensors of those adapters now, and whether each was trained."""
        for name, trained in self.trained.items():
            for key, tensor in self.module.adapter_tensors(name).items():
                yield tensor, trained[key]

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
        return ""


@dataclass
class Notes:
    """What one call of a checkpointed function has noted, by ``id`` of the module.

    Args:
        number: of the call; modules made later have higher ones.
    """

    number: int
    noted: dict[int, Noted] = field(default_factory=dict)
