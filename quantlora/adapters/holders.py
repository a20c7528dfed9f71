"""Where a model holds adapters, and what is the model's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn

from quantlora.adapters.saved_modules import SavedModule
from quantlora.layers.layer import LoraLayer
from quantlora.layers.tied import TiedLayer


def own_modules(model: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    """All modules by path, also under a second path; what is inside ours is left out."""
    inside = None
    for path, module in model.named_modules(remove_duplicate=False):
        if inside is not None and path.startswith(inside):
            continue
        ours = isinstance(module, (LoraLayer, SavedModule, TiedLayer))
        inside = f"{path}." if ours else None
        yield path, module


def plain_module(module: nn.Module) -> tuple[nn.Module, str]:
    """The frozen module in one of ours, and its name in there with a dot after it."""
    if isinstance(module, LoraLayer):
        return module.plain_base[0], "base_layer."
    if isinstance(module, TiedLayer):
        return module.base_layer, "base_layer."
    if isinstance(module, SavedModule):
        return module.original_module, "original_module."
    return module, ""


def adapter_holders(model: nn.Module) -> Iterator[tuple[str, LoraLayer | SavedModule]]:
    """All that holds adapters, by path, each once: LoRA layers and modules trained in full."""
    for path, module in model.named_modules():
        if isinstance(module, (LoraLayer, SavedModule)):
            yield path, module


def saved_modules(model: nn.Module) -> Iterator[tuple[str, SavedModule]]:
    """The modules that adapters train in full, by path."""
    for path, holder in adapter_holders(model):
        if isinstance(holder, SavedModule):
            yield path, holder


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """The model's LoRA layers by path, each once."""
    for path, module in model.named_modules():
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


def tied_layers(model: nn.Module) -> list[tuple[str, TiedLayer]]:
    """The layers that follow the adapters of another one, by path."""
    return [(path, one) for path, one in model.named_modules() if isinstance(one, TiedLayer)]
