"""The library's hook on a model: at the first forward it decompresses every layer for good."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from quantlora import lora_layers
from quantlora_compressed_tensors.layer import is_compressed

#: What the library calls the hook's handle, on the model.
_HANDLE = "ct_decompress_hook"
#: On a model whose hook was taken away, and on its layers.
HOOKED = "_quantlora_hooked"


def keep_packed(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Take the hook away; what it would do is done now for layers that get no adapter."""
    kept = {id(layer) for layer in layers.values()}
    kept |= {id(part) for _, layer in lora_layers(model) for part in layer.modules()}
    for module in [*model.modules()]:
        handle: Any = getattr(module, _HANDLE, None)
        if handle is not None:
            handle.remove()
            vars(module)[HOOKED] = True
            for layer in layers.values():
                vars(layer)[HOOKED] = True
    _decompress(module for module in model.modules() if id(module) not in kept)


def give_back(model: nn.Module) -> None:
    """Put a hook back that decompresses what is packed by then."""
    for module in model.modules():
        if vars(module).pop(HOOKED, None) and hasattr(module, _HANDLE):
            setattr(module, _HANDLE, module.register_forward_pre_hook(_at_first_forward))


def _at_first_forward(model: Any, args: Any) -> None:
    _decompress(model.modules())
    model.ct_decompress_hook.remove()
    del model.ct_decompress_hook


def _decompress(modules: Iterable[nn.Module]) -> None:
    from compressed_tensors.compressors.base import decompress_module

    for module in modules:
        if is_compressed(module):
            decompress_module(module)
