"""Where a model holds adapters, and what is the model's own."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from quantlora.adapters.modules_to_save import ModulesToSaveWrapper
from quantlora.layers.adapter_module import AdapterModule
from quantlora.layers.layer import LoraLayer
from quantlora.layers.tied import TiedLayer

#: Where one of ours keeps the model's own; the rest of its modules are kept by adapter name.
FROZEN = ("base_layer", "original_module")
#: The modules that stand where one of the model's own stood.
OURS = (AdapterModule, TiedLayer)


def frozen_modules(model: nn.Module, repeat: bool = False) -> Iterator[tuple[str, nn.Module]]:
    """``named_modules`` without those that belong to an adapter, of which there may be hundreds.

    Args:
        repeat: also give a module that was given under another path.
    """
    seen: set[int] = set()
    todo = [("", model)]
    while todo:
        path, module = todo.pop()
        if not repeat and id(module) in seen:
            continue
        seen.add(id(module))
        yield path, module
        ours = isinstance(module, OURS)
        before = f"{path}." if path else ""
        todo += [
            (before + name, child)
            for name, child in reversed(module._modules.items())
            if child is not None and not (ours and name not in FROZEN)
        ]


def adapter_containers(module: nn.Module) -> list[nn.Module]:
    """What one of ours keeps by adapter name; nothing for a module of the model's."""
    if not isinstance(module, OURS):
        return []
    return [
        child for name, child in module._modules.items() if child is not None and name not in FROZEN
    ]


def modules_of_container(container: nn.Module) -> list[nn.Module]:
    """The modules in such a container."""
    direct = [child for child in container._modules.values() if child is not None]
    nested = [child for child in direct if child._modules]
    return [*direct, *(inner for child in nested for inner in list(child.modules())[1:])]


def modules_of_adapter(module: nn.Module, name: str) -> list[nn.Module]:
    """The modules of adapter ``name`` in one of ours."""
    found = [container._modules.get(name) for container in adapter_containers(module)]
    return [inner for child in found if child is not None for inner in child.modules()]


def parameters_of_adapter(module: nn.Module, name: str) -> list[nn.Parameter]:
    """The parameters of adapter ``name`` in one of ours."""
    direct = [container._parameters.get(name) for container in adapter_containers(module)]
    inner = [p for part in modules_of_adapter(module, name) for p in part._parameters.values()]
    return [p for p in (*direct, *inner) if p is not None]


def unfrozen_adapters(module: nn.Module) -> set[str]:
    """The adapters in one of ours of which a parameter needs a gradient; no call for each."""
    found: set[str] = set()
    for container in adapter_containers(module):
        for name, parameter in container._parameters.items():
            if parameter is not None and parameter.requires_grad:
                found.add(name)
        for name, child in container._modules.items():
            if child is not None:
                own = child.parameters() if child._modules else child._parameters.values()
                for parameter in own:
                    if parameter is not None and parameter.requires_grad:
                        found.add(name)
    return found


def plain_module(module: nn.Module) -> tuple[nn.Module, str]:
    """The frozen module in one of ours, and its name in there with a dot after it."""
    if isinstance(module, LoraLayer):
        return module.plain_base[0], "base_layer."
    if isinstance(module, TiedLayer):
        return module.base_layer, "base_layer."
    if isinstance(module, ModulesToSaveWrapper):
        return module.original_module, "original_module."
    return module, ""


def adapter_modules(model: nn.Module) -> Iterator[tuple[str, AdapterModule]]:
    """All that holds adapters, by path, each once: LoRA layers and modules trained in full."""
    for path, module in frozen_modules(model):
        if isinstance(module, AdapterModule):
            yield path, module


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """The model's LoRA layers by path, each once."""
    for path, module in frozen_modules(model):
        if isinstance(module, LoraLayer):
            yield path, module


def embedding_ends(model: nn.Module) -> tuple[nn.Module | None, nn.Module | None]:
    """The input and the output embeddings, where the model has such and says so.

    Models of images and sound have the methods from their base class, which raise there.
    """
    return _end(model, "get_input_embeddings"), _end(model, "get_output_embeddings")


def _end(model: nn.Module, method: str) -> nn.Module | None:
    try:
        found = getattr(model, method, lambda: None)()
    except (NotImplementedError, AttributeError):
        return None
    return found if isinstance(found, nn.Module) else None
