"""PEFT's names for what a LoRA layer of quantlora is asked and told, one call each."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import quantlora
from quantlora.adapters.modules_to_save import ModulesToSaveWrapper


def _get_delta_weight(layer: Any, adapter: str) -> Tensor:
    return layer.delta_weight(adapter, layer.plain_weight())


def _set_adapter(layer: Any, names: str | list[str], inference_mode: bool = False) -> None:
    layer.activate([names] if isinstance(names, str) else names)
    for name in layer.adapters:
        for tensor in layer.adapter_tensors(name).values():
            tensor.requires_grad_(name in layer.active and not inference_mode)


def _enable_adapters(layer: Any, enabled: bool) -> None:
    layer.enabled = enabled


def put_layer_names() -> None:
    """The names are on the layers' classes from now on, in this process."""
    for cls in (quantlora.LoraLayer, ModulesToSaveWrapper):
        own: Any = cls
        own.set_adapter = _set_adapter
        own.enable_adapters = _enable_adapters
        own.disable_adapters = property(lambda layer: not layer.enabled)
        own.active_adapters = property(lambda layer: list(layer.active))
        own.active_adapter = property(lambda layer: list(layer.active))
        own.merged = property(lambda layer: bool(layer.merged_adapters))
        own._all_available_adapter_names = lambda layer: list(layer.adapters)
    layers: Any = quantlora.LoraLayer
    layers.get_delta_weight = _get_delta_weight
    layers.get_base_layer = lambda layer: layer.base_layer
