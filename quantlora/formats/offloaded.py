"""Layers whose tensors accelerate keeps elsewhere (``device_map`` with "cpu" or "disk").

Between uses such a layer's tensors are on the meta device; a hook around the layer's forward brings
them in and takes them away. A LoRA layer reads the frozen layer without calling its forward, and
once more in backward, so it has the same hook do the same around each reading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

from torch import nn

from quantlora.errors import BackendError

T = TypeVar("T")

#: Where accelerate hangs its hook.
_HOOK = "_hf_hook"


def is_offloaded(layer: nn.Module) -> bool:
    """Whether a hook brings in the tensors of ``layer`` for each use."""
    if not layer._modules:  # asked in every forward
        return _offloads(layer)
    return any(map(_offloads, layer.modules()))


def onloaded(layer: nn.Module) -> AbstractContextManager[None]:
    """Within the block, the tensors of ``layer`` are where it computes. May be nested."""
    return _brought_in(layer) if is_offloaded(layer) else nullcontext()


def read(function: Callable[..., T], layer: nn.Module, *arguments: Any) -> T:
    """``function(layer, *arguments)`` with the layer's tensors on its device."""
    with onloaded(layer):
        return function(layer, *arguments)


@contextmanager
def _brought_in(layer: nn.Module) -> Iterator[None]:
    away = [module for module in layer.modules() if _is_away(module)]
    hooks: list[Any] = [getattr(module, _HOOK) for module in away]
    try:
        for module, hook in zip(away, hooks, strict=True):
            hook.pre_forward(module)
    except Exception as error:
        raise BackendError(
            f"accelerate cannot bring the offloaded weights of a {type(layer).__name__} back "
            f"({type(error).__name__}: {error}). Load the model with this layer on a device: "
            f"device_map without 'cpu' and 'disk'."
        ) from error
    try:
        yield
    finally:
        for module, hook in zip(away, hooks, strict=True):
            hook.post_forward(module, None)


def _offloads(module: nn.Module) -> bool:
    """The hook may be a sequence of hooks."""
    hook = vars(module).get(_HOOK)
    if hook is None:
        return False
    return any(getattr(part, "offload", False) for part in getattr(hook, "hooks", (hook,)))


def _is_away(module: nn.Module) -> bool:
    tensors = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return _offloads(module) and any(tensor.is_meta for tensor in tensors)
