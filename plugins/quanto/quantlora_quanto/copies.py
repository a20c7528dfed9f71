"""Copies of quanto's layers: with torch 2.13 the library's tensors cannot be copied by themselves.

`copy.deepcopy` asks an object for ``__deepcopy__`` first, so a layer gets one of its own. It knows
the layer weakly, for a layer that holds itself stays in memory, and is None in a pickle.
"""

from __future__ import annotations

import copy
import weakref
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

_NAME = "__deepcopy__"


class LayerCopy:
    """``copy.deepcopy`` of one layer; ``lent`` while it has an adapter."""

    def __init__(self, layer: nn.Module, lent: bool) -> None:
        self.layer, self.lent = weakref.ref(layer), lent

    def __call__(self, memo: dict[int, Any]) -> Any:
        layer: Any = self.layer()
        twin = layer.__class__.__new__(layer.__class__)
        weight = nn.Parameter(copied(layer.weight), layer.weight.requires_grad)
        memo[id(layer)], memo[id(layer.weight)] = twin, weight
        rest = {name: value for name, value in vars(layer).items() if name != _NAME}
        vars(twin).update(copy.deepcopy(rest, memo))
        return copyable(twin, self.lent)

    def __reduce__(self) -> tuple[Any, ...]:
        return _nothing, ()


def _nothing() -> None:
    return None


def copyable(layer: Any, lent: bool = False) -> Any:
    """``layer``, that can be copied from now on, or until `release` where that is ``lent``."""
    if vars(layer).get(_NAME) is None:
        vars(layer)[_NAME] = LayerCopy(layer, lent)
    return layer


def release(layer: nn.Module) -> None:
    """Take away again what was lent."""
    if getattr(vars(layer).get(_NAME), "lent", True):
        vars(layer).pop(_NAME, None)


def copied(tensor: Any) -> Any:
    """A tensor of the library's with parts of its own."""
    if not is_traceable_wrapper_subclass(tensor):
        plain: Tensor = tensor.clone()
        return plain
    names, facts = tensor.__tensor_flatten__()
    parts = {name: copied(getattr(tensor, name)) for name in names}
    return type(tensor).__tensor_unflatten__(parts, facts, tensor.size(), tensor.stride())
