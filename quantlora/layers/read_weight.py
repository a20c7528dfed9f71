"""``layer.weight`` of a LoRA layer, read from outside: the weight the layer computes with.

It is the frozen layer's parameter while no adapter is active, and a `WeightView` of ``W + Σ ΔW``
otherwise, or where the frozen layer has no float weight to show. Either is as the layer stores it:
transposed for an embedding, in the compute dtype for a packed layer.
"""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.stateless import _reparametrize_module

from quantlora.errors import AdapterError, AdapterWarning
from quantlora.formats.offloaded import is_offloaded
from quantlora.formats.seen import Seen
from quantlora.formats.transforms import transformed
from quantlora.layers.weight_view import WeightView


def read_weight(layer: Any, key: str = "weight") -> Any:
    """The weight called ``key`` as a model that reads it must see it; None where there is none."""
    names = layer.read_names()
    frozen = layer.own_weight(key)
    if names == () and frozen is not None:
        return frozen
    if names is not None and _traced():
        return layer.updated(key, names)
    return _view(layer, key, names)


def is_plain(weight: Tensor) -> bool:
    """Whether the numbers of ``weight`` are what they stand for; float8 has a scale elsewhere."""
    return weight.is_floating_point() and weight.element_size() > 1


def _traced() -> bool:
    """A compiler or `torch.func` sees through plain operations only."""
    return torch.compiler.is_compiling() or transformed()


def _view(layer: Any, key: str, names: tuple[str, ...] | None) -> Tensor:
    recorded = names is not None and torch.is_grad_enabled()
    trained = [p for p in layer.parameters() if p.requires_grad] if recorded else []
    read = _Reading(layer, key, names)
    view: Tensor = _Read.apply(read, *trained)  # type: ignore[no-untyped-call]
    return view


class _Reading:
    """One reading of one weight: what it stands for, then and in backward."""

    def __init__(self, layer: Any, key: str, names: tuple[str, ...] | None) -> None:
        self.layer, self.key, self.names = layer, key, names
        self.seen = None if is_offloaded(layer) else Seen(layer, layer.path, self._undo_repacking)

    def _undo_repacking(self) -> None:
        self.layer.quantizer.undo_repacking(self.layer.base_layer)

    def view(self) -> WeightView:
        meta, device = self.layer.meta_weight(self.key)
        packed = self.layer.own_weight(self.key) is None
        return WeightView.like(meta, device, self.value, self.layer.path, packed)

    def value(self) -> Tensor:
        """The matrix; with its gradient where gradients are on."""
        layer = self.layer
        if self.names is None:
            raise AdapterError(
                f"{layer.path}: the model reads this layer's weight instead of calling it, so all "
                f"samples share it: its adapters cannot be in a mixed batch. Run one adapter at a "
                f"time."
            )
        if any(layer.drops(name) for name in self.names):
            text = f"{layer.path}: the model reads this layer's weight: lora_dropout has no effect."
            warnings.warn(text, AdapterWarning, stacklevel=2)
        layer.weight_was_used = True
        with self._as_seen():
            weight: Tensor = layer.updated(self.key, self.names)
        return weight

    def _as_seen(self) -> AbstractContextManager[Any]:
        """Within the block the layer has the tensors that `torch.func.functional_call` gave it."""
        found = {} if self.seen is None else self.seen.exchanged(self.layer)
        return _reparametrize_module(self.layer, found) if found else nullcontext()


class _Read(torch.autograd.Function):
    """A view that stands in the graph between the adapters' parameters and the model's use."""

    @staticmethod
    def forward(ctx: Any, read: _Reading, *trained: Tensor) -> WeightView:
        ctx.read = read
        ctx.save_for_backward(*trained)
        return read.view()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        trained = ctx.saved_tensors  # an error where they have changed since
        with torch.enable_grad(), torch.autocast(grad.device.type, enabled=False):
            weight = ctx.read.value()
        again: dict[str, Any] = {"allow_unused": True, "create_graph": torch.is_grad_enabled()}
        return (None, *torch.autograd.grad(weight, trained, grad, **again))
