"""What a layer may have around it besides hooks: a forward of its own, a weight that is computed.

Float layers with such things are called as a whole, never read; packed ones are refused.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from quantlora.formats.quantizer import Quantizer

#: Whose forwards leave the product as it is.
_HARMLESS = ("torch", "accelerate")


def computing_hooks(layer: nn.Module) -> dict[int, Callable[..., Any]]:
    """Pre-hooks that make the weight or bias before each forward, by their number.

    Those of `torch.nn.utils`: the old ``weight_norm`` and ``spectral_norm``, and ``prune``.
    """
    made = [name for name in ("weight", "bias") if name in vars(layer)]
    return {
        number: hook
        for number, hook in layer._forward_pre_hooks.items()
        if getattr(hook, "name", getattr(hook, "_tensor_name", None)) in made
    }


def own_forward(layer: nn.Module, quantizer: Quantizer) -> Callable[..., Any] | None:
    """The instance's own forward, if it is neither the library's nor one of accelerate's hooks."""
    for name in ("forward", "_old_forward"):  # accelerate keeps the one that it calls
        forward = vars(layer).get(name)
        if forward is not None and not _known(forward, quantizer):
            return forward  # type: ignore[no-any-return]
    return None


def called_otherwise(module: nn.Module) -> bool:
    """Whether the instance has a forward of its own; accelerate's calls the class's."""
    return "forward" in vars(module) and not hasattr(module, "_hf_hook")


def foreign_forward(layer: nn.Module, quantizer: Quantizer) -> Callable[..., Any] | None:
    """The forward of a subclass that is not the library's."""
    return None if _known(type(layer).forward, quantizer) else type(layer).forward


@torch.no_grad()
def changes_when_read(layer: nn.Module) -> bool:
    """Whether a parametrization gives another weight each time: spectral_norm, or a random one."""
    if not parametrize.is_parametrized(layer, "weight"):
        return False
    trial: Any = copy.deepcopy(layer).train()
    first = trial.weight
    return not first.is_meta and not torch.equal(first, trial.weight)


def must_be_called(layer: nn.Module, quantizer: Quantizer) -> bool:
    """Whether the weight and bias of a float layer do not tell what it computes."""
    if not quantizer.is_float:
        return False
    computed = bool(computing_hooks(layer)) or changes_when_read(layer)
    return computed or own_forward(layer, quantizer) is not None


def refresh(layer: nn.Module) -> None:
    """Make the computed weight and bias anew, as the next forward would in eval mode."""
    hooks, training = computing_hooks(layer), layer.training
    try:
        layer.training = False
        for hook in hooks.values():
            hook(layer, ())
    finally:
        layer.training = training


def _known(function: Any, quantizer: Quantizer) -> bool:
    while isinstance(function, partial):
        function = function.func
    bound = getattr(function, "__func__", function)
    types = quantizer.layer_types()
    if any(bound is vars(cls).get("forward") for kind in types for cls in kind.__mro__):
        return True
    names = {kind.__module__ for kind in types} | {quantizer.module, *quantizer.other_modules}
    tops = {name.partition(".")[0] for name in names} | set(_HARMLESS)
    return (getattr(bound, "__module__", None) or "").partition(".")[0] in tops
