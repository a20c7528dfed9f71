"""Fields of the config file that a variant settles for itself.

Where it scales its update otherwise than PEFT, ``lora_alpha`` in the file makes up for it: the
tensors go to the file as they are and come back bit for bit, and PEFT computes the same update.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.config.lora_config import LoraConfig
from quantlora.config.patterns import as_pattern, without_order
from quantlora.errors import AdapterFileError, warn
from quantlora.layers.layer import LoraLayer
from quantlora.layers.parameters import LoraParameters
from quantlora.names import plain_path


def file_config(adapted: AdaptedModel, config: LoraConfig, adapter: str) -> LoraConfig:
    """``config`` as it goes to the file."""
    every = adapted.lora_layers.items()
    layers = {path: layer for path, layer in every if adapter in layer.adapters}
    fields: dict[str, Any] = {}
    for path, layer in layers.items():
        for name, value in layer.file_fields(adapter).items():
            if fields.setdefault(name, value) != value:
                raise AdapterFileError(
                    f"{path}: {name} is {value} here and {fields[name]} in another layer, but the "
                    f"file has room for one: use one adapter for each value."
                )
    for name in ("rank_pattern", "alpha_pattern"):
        fields[name] = without_order(getattr(config, name), _named(layers))
    if fields.get("lora_dropout", config.lora_dropout) != config.lora_dropout:
        warn(
            f"the file of adapter {adapter!r} says lora_dropout 0, for PEFT knows none on experts "
            f"and would not load it: to train it on, give it to a new adapter or train without."
        )
    if all(layer.alpha_factor(adapter) == 1.0 for layer in layers.values()):
        return replace(config, **fields)
    alphas = {
        p: layer.lora_alpha[adapter] * layer.alpha_factor(adapter) for p, layer in layers.items()
    }
    usual, pattern = as_pattern(alphas)
    fields |= {"lora_alpha": usual, "alpha_pattern": pattern}
    return replace(config, **fields)


def _named(layers: Mapping[str, LoraLayer]) -> list[str]:
    """What patterns can match: the layers, and the adapted parameters of a module."""
    inner = [
        f"{path}.{name}"
        for path, layer in layers.items()
        if isinstance(layer, LoraParameters)
        for name in layer.shapes
    ]
    return [plain_path(path) for path in (*layers, *inner)]


def take_file_alpha(layer: LoraLayer, config: LoraConfig, adapter: str) -> None:
    """Turn the alpha that came from a file into the layer's own."""
    alpha = layer.lora_alpha[adapter] / layer.alpha_factor(adapter)
    layer.lora_alpha[adapter] = alpha
    layer.scaling[adapter] = config.scaling(layer.r[adapter], alpha)
