"""The memory that training takes, by what it is for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import Tensor, nn

from quantlora.adapters.adapter_modules import adapter_modules, frozen_modules
from quantlora.discovery.registration import registry
from quantlora.formats.expert_stack import ExpertStack
from quantlora.formats.flattened import count_bytes
from quantlora.html_tables import Bar, html_table
from quantlora.units import format_size


@dataclass(frozen=True)
class MemoryUse:
    """Bytes by component.

    Args:
        base_packed: the frozen layers in a packed format, scales and the like included.
        base_float: everything else that is frozen: embeddings, norms, float layers, buffers.
        adapters: adapters, and modules that are trained in full.
        gradients: of what is trained.
        optimizer: what the optimizer keeps for each trained parameter.
        activations: the most that one forward and backward have alive at one moment, besides the
            gradients of what is trained: kept activations, logits, dequantized weights.
    """

    base_packed: int
    base_float: int
    adapters: int
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0

    @property
    def total(self) -> int:
        return sum(self.as_json().values())

    def as_json(self) -> dict[str, int]:
        return asdict(self)

    def rows(self) -> list[tuple[str, int]]:
        """``("base packed", bytes)`` and so on, the total last."""
        parts = [
            (field.name.replace("_", " "), getattr(self, field.name)) for field in fields(self)
        ]
        return [*parts, ("total", self.total)]

    def _repr_html_(self) -> str:
        whole = self.total or 1
        bars = [(name, Bar(count / whole, format_size(count))) for name, count in self.rows()]
        return html_table(("memory", "bytes"), bars)

    def __str__(self) -> str:
        return "\n".join(f"{name:<12} {format_size(count):>10}" for name, count in self.rows())


def memory_of(model: nn.Module) -> MemoryUse:
    """What ``model`` takes as it stands, before a step."""
    adapters = {id(tensor): tensor for tensor in adapter_tensors(model)}
    packed = {id(layer): layer for layer in _packed_layers(model)}
    inside = {id(tensor) for layer in packed.values() for tensor in _own_tensors(layer)}
    others = {id(tensor): tensor for tensor in _own_tensors(model)}
    base_float = [
        tensor for key, tensor in others.items() if key not in adapters and key not in inside
    ]
    return MemoryUse(
        base_packed=sum(count_bytes(_state_tensors(layer)) for layer in packed.values()),
        base_float=count_bytes(base_float),
        adapters=count_bytes(adapters.values()),
    )


def adapter_tensors(model: nn.Module) -> Iterator[Tensor]:
    """What adapters bring along, and whatever else is trained."""
    for _, module in adapter_modules(model):
        for name in module.adapters:
            yield from module.adapter_tensors(name).values()
    yield from (parameter for parameter in model.parameters() if parameter.requires_grad)


def trained_bytes(model: nn.Module) -> int:
    return count_bytes(parameter for parameter in model.parameters() if parameter.requires_grad)


def gradient_bytes(model: nn.Module) -> int:
    return count_bytes(p.grad for p in model.parameters() if p.grad is not None)


def optimizer_bytes(optimizer: Any) -> int:
    """Of a ``torch.optim.Optimizer``, or of one that accelerate has wrapped."""
    states = optimizer.state.values()
    return count_bytes(
        value for state in states for value in state.values() if isinstance(value, Tensor)
    )


def _packed_layers(model: nn.Module) -> Iterator[nn.Module]:
    return (
        module
        for _, module in frozen_modules(model)
        if isinstance(module, ExpertStack) or registry().packed_format(module)
    )


def _own_tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _state_tensors(layer: nn.Module) -> list[Tensor]:
    """As in a checkpoint: some libraries keep scales in attributes that are no buffers."""
    return [value for value in layer.state_dict().values() if isinstance(value, Tensor)]
