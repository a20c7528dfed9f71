"""Layers that cannot run on this machine without a LoRA layer around them are told of."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.adapters.releasing import other_layers
from quantlora.formats.quantizer import Quantizer

#: What to do about layers that an adapter has left.
LEFT = (
    "they can be saved as they are. To run the model here, wrap it again: then "
    'quantlora.merge_and_unload(model, mode="dequantize") makes one that runs anywhere, and '
    "quantlora.disable_adapters, in place of unload, runs the base"
)
#: The same for layers that no adapter was ever on.
WITHOUT = (
    'give each of them one (target_modules="all-linear"), or load the model where they can run; '
    "layers that are never called do no harm"
)


def not_runnable(layers: Iterable[tuple[str, nn.Module, Quantizer]], remedy: str) -> str:
    """What to say of those of ``layers`` (path, layer, format) that cannot run; else empty."""
    why = {path: (q.name, text) for path, layer, q in layers if (text := q.not_runnable(layer))}
    if not why:
        return ""
    (first, (name, text)), more = next(iter(why.items())), len(why) - 1
    others = f" and {more} more" if more else ""
    return (
        f"{first}{others}: a layer in format {name!r} without an adapter cannot run here: "
        f"{text.rstrip('.')}. Remedy: {remedy}."
    )


def idle(adapted: AdaptedModel, layers: Iterable[nn.Module] = ()) -> str:
    """The same of all layers of a model that have no adapter; ``layers`` are about to get one."""
    targeted = [id(layer) for layer in layers]
    return not_runnable(other_layers(adapted.modules, targeted), WITHOUT)
