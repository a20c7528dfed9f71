"""What stands around a layer and cannot be kept: refused by name.

Hooks go with the layer's place (`layers.hooks`). Float layers with a forward of their own or a
weight that is computed before each forward are called as they are. Everything else that reads the
weight itself (packing, DoRA, PiSSA) would pass these by.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from quantlora.config.lora_config import LoraConfig
from quantlora.errors import LayerError
from quantlora.formats.around import (
    changes_when_read,
    computing_hooks,
    foreign_forward,
    own_forward,
)
from quantlora.formats.quantizer import Quantizer


def check_surroundings(
    path: str, layer: nn.Module, current: Quantizer, future: Quantizer, config: LoraConfig
) -> None:
    """Raise `LayerError` where ``layer`` computes more than the LoRA layer would see.

    Args:
        current: the layer's format.
        future: the one that it is going to be in.
    """
    plain = config.variant == "lora" and config.init_lora_weights in (True, False, "gaussian")
    if not current.is_float and (forward := foreign_forward(layer, current)) is not None:
        raise LayerError(_own_forward(path, forward, f"format {current.name!r}"))
    if future.is_float and plain:
        return
    why = f"format {future.name!r}" if not future.is_float else "this variant or initializer"
    if (forward := own_forward(layer, current)) is not None:
        raise LayerError(_own_forward(path, forward, why))
    if hooks := computing_hooks(layer):
        kinds = ", ".join(type(hook).__name__ for hook in hooks.values())
        raise LayerError(
            f"{path}: its weight or bias is computed before each forward ({kinds}), which {why} "
            f"would pass by. Make it plain first: torch.nn.utils.remove_weight_norm, "
            f"remove_spectral_norm or prune.remove."
        )
    if changes_when_read(layer):
        raise LayerError(
            f"{path}: its weight changes each time it is read in training (spectral_norm, or a "
            f"random parametrization), which {why} would pass by. Make it plain first: "
            f"torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')."
        )


def _own_forward(path: str, function: Callable[..., Any], why: str) -> str:
    name = getattr(function, "__qualname__", type(function).__qualname__)
    home = getattr(function, "__module__", None) or "?"
    return (
        f"{path}: its forward is one of its own, {home}.{name}, which {why} would pass by, for "
        f"that reads the weight itself. Put it on the wrapped layer instead, use a forward hook, "
        f"or leave the layer out by exclude_modules."
    )
