"""`reference_model`: the model as it is now, frozen, beside the one that is trained on.

Preference and reinforcement learning compare the policy with where it began. A copy of the whole
model would cost its memory again, and the plain checkpoint is another model than a quantized base.
So the reference shares every frozen tensor with the policy and copies what is trained.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from typing import Any, TypeVar

from torch import Tensor, nn

from quantlora.adapters.adapter_modules import adapter_modules
from quantlora.errors import AdapterError

M = TypeVar("M", bound=nn.Module)

_MARK = "quantlora_reference"


def reference_model(model: M) -> M:
    """The wrapped ``model`` as it is now, for ``ref_model=`` of a trainer.

    It computes what the model computes at this moment: the base alone where the adapter is new, the
    base and the adapter where that has been trained before. Training ``model`` does not change it.

    Args:
        model: a wrapped model, or one with a wrapped model in it; nothing merged.

    Returns:
        A model of the same class, in eval mode, without gradients. Frozen parameters and buffers
        are the model's own, so it costs the memory of the active adapters.

    Raises:
        AdapterError: the model has no adapters, or one of them is merged into the base.
    """
    modules = list(adapter_modules(model))
    if not modules:
        raise AdapterError(
            f"this {type(model).__name__} has no adapters: call quantlora.wrap(model) first."
        )
    for path, module in modules:
        if module.merged_adapters:
            raise AdapterError(
                f"{path}: {', '.join(module.merged_adapters)} is merged into the base, which the "
                f"reference would share: call quantlora.unmerge(model) first."
            )
    reference = copy.deepcopy(model, {id(tensor): tensor for tensor in _shared(model)})
    _own_forward(reference)
    vars(reference)[_MARK] = True
    return reference.requires_grad_(False).eval()


def is_reference(model: object) -> bool:
    """Whether `reference_model` made ``model``, which then shares tensors with another."""
    return isinstance(model, nn.Module) and _MARK in vars(getattr(model, "module", model))


def _shared(model: nn.Module) -> Iterator[Any]:
    """What stays the policy's own: all but the active adapters and whatever else is trained."""
    trained = {
        id(tensor)
        for _, module in adapter_modules(model)
        for name in module.active
        for tensor in module.adapter_tensors(name).values()
    }
    for module in model.modules():
        tensors = [*module._parameters.values(), *module._buffers.values()]
        for tensor in [*tensors, *_attributes(module)]:
            if tensor is None or id(tensor) in trained or getattr(tensor, "requires_grad", False):
                continue
            yield tensor


def _attributes(module: nn.Module) -> Iterator[Any]:
    """Tensors, and objects that hold tensors, among a layer's plain attributes."""
    hook = getattr(module, "_hf_hook", None)
    yield from (getattr(hook, name, None) for name in ("weights_map", "tied_params_map"))
    for value in vars(module).values():
        held = getattr(value, "__dict__", {}) if not isinstance(value, nn.Module) else {}
        if any(isinstance(item, Tensor) for item in (value, *held.values())):
            yield value


def _own_forward(reference: nn.Module) -> None:
    """Take away a forward that was put on the policy and calls the policy's, whoever calls it."""
    forward = vars(reference).get("forward")
    if forward is not None and inspect.unwrap(forward) is inspect.unwrap(type(reference).forward):
        del vars(reference)["forward"]
