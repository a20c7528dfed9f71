"""What a wrapped model carries: the configs of its adapters, and which are active."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from quantlora.config.lora_config import LoraConfig
from quantlora.errors import AdapterError
from quantlora.layers.calls import calls
from quantlora.layers.trained_bias import TrainedBias
from quantlora.suggestions import unknown

_ATTRIBUTE = "quantlora_state"


@dataclass
class AdapterState:
    """Kept at ``model.quantlora_state``; the layers hold the numbers.

    ``paused`` is what was trained before the first of ``pauses`` blocks without adapters began.
    ``trained`` are the adapters that are trained, and ``frozen`` parameters of adapters that stay
    frozen where theirs is.
    """

    configs: dict[str, LoraConfig] = field(default_factory=dict)
    active: tuple[str, ...] = ()
    enabled: bool = True
    biases: dict[str, list[TrainedBias]] = field(default_factory=dict)
    pauses: int = 0
    paused: list[Tensor] = field(default_factory=list)
    trained: tuple[str, ...] = ()
    frozen: list[Tensor] = field(default_factory=list)

    def __deepcopy__(self, memo: dict[int, Any]) -> AdapterState:
        """A copy of a model is in none of the blocks that its original is in."""
        new = replace(self)
        vars(new).update(copy.deepcopy(vars(self), memo))
        new.pauses = int(not self.enabled)
        for tensor in () if new.pauses else new.paused:
            tensor.requires_grad_(True)
        new.paused = new.paused if new.pauses else []
        return new

    def known(self, name: str) -> LoraConfig:
        """The config of adapter ``name``; an `AdapterError` with near names where there is none."""
        if name not in self.configs:
            raise AdapterError(unknown("adapter", name, self.configs))
        return self.configs[name]

    def check_free(self, name: str) -> None:
        """Raise `AdapterError` where there is an adapter called ``name``."""
        if name in self.configs:
            raise AdapterError(taken(name))

    @property
    def applied(self) -> bool:
        """Whether the active adapters are applied in this thread."""
        return self.enabled and id(self) not in calls().off


def has_adapters(model: nn.Module) -> bool:
    return isinstance(getattr(model, _ATTRIBUTE, None), AdapterState)


def adapter_state(model: nn.Module) -> AdapterState:
    """The model's state; an `AdapterError` where it was never wrapped."""
    if not has_adapters(model):
        inner = getattr(model, "module", None)  # data parallelism's name for the model in it
        within = isinstance(inner, nn.Module) and has_adapters(inner)
        what = "give its model.module" if within else "call quantlora.wrap(model) first"
        raise AdapterError(f"this {type(model).__name__} has no adapters: {what}.")
    state: AdapterState = getattr(model, _ATTRIBUTE)
    return state


def set_state(model: nn.Module, state: AdapterState | None) -> None:
    if state is not None:
        setattr(model, _ATTRIBUTE, state)
    elif has_adapters(model):
        delattr(model, _ATTRIBUTE)


def known_adapter(model: nn.Module, name: str) -> LoraConfig:
    """`AdapterState.known` of the model's state."""
    return adapter_state(model).known(name)


def taken(name: str) -> str:
    """What to say of a name that is to be given twice."""
    return (
        f"adapter {name!r} exists already. Give the new one another name, or remove the old one "
        f"with quantlora.delete_adapter(model, {name!r})."
    )
