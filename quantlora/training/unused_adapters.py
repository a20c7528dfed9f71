"""After the first step of training, adapters that no gradient has reached are named.

The model then does not use their layers, or not in a way that an adapter can follow. Asked is any
optimizer of torch, so every training loop is covered; it costs one look at each B, once.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any
from weakref import WeakSet

from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from quantlora.adapters.adapter_modules import lora_layers
from quantlora.errors import AdapterWarning
from quantlora.suggestions import some

_watched: WeakSet[nn.Module] = WeakSet()
_hooks: list[Any] = []


def watch_first_step(model: nn.Module) -> None:
    """Name the unused adapters of ``model`` before the first step of an optimizer that has them."""
    _watched.add(model)
    if not _hooks:
        _hooks.append(register_optimizer_step_pre_hook(_look))


def _look(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for model in list(_watched):
        seen = {path: B for path, B in _trained(model) if id(B) in stepped}
        unused = [path for path, B in seen.items() if B.grad is None]
        if len(unused) < len(seen):  # else nothing went backward yet, or not here
            _watched.discard(model)
            if unused:
                warnings.warn(_text(unused), AdapterWarning, stacklevel=2)
    if not _watched and _hooks:
        _hooks.pop().remove()


def _trained(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, layer in lora_layers(model):
        for name in layer.active:
            for key, tensor in layer.adapter_tensors(name).items():
                if "_B" in key and key.endswith(("_B", ".weight")) and tensor.requires_grad:
                    yield f"{path}.{key} ({name})", tensor


def _text(unused: list[str]) -> str:
    return (
        f"{some(unused)}: no gradient in the first step. The model did not use these layers: an "
        f"expert that no token chose and a layer that was skipped may get theirs later; else leave "
        f"them out by exclude_modules."
    )
