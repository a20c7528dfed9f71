"""The frozen layers under the adapters: as they are, or quantized now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from quantlora.adapters.holders import own_modules
from quantlora.discovery.diagnosis import diagnosed
from quantlora.discovery.registration import registry
from quantlora.formats.layouts import linear_from
from quantlora.formats.offloaded import at_hand, read
from quantlora.layers.layer import LoraLayer
from quantlora.wrapping.plan import PlannedLayer, check_model


def frozen_bases(
    model: nn.Module, plan: list[PlannedLayer], options: Mapping[str, Any]
) -> dict[str, nn.Module]:
    """The frozen layer for each path: as it is, or quantized now."""
    bases = {planned.path: planned.layer for planned in plan}
    check_model(model, plan)
    todo = [planned for planned in plan if planned.quantize]
    if todo:
        linears = {planned.path: as_linear(planned.layer) for planned in todo}
        with diagnosed(todo[0].quantizer):
            bases |= todo[0].quantizer.quantize_layers(model, linears, **options)
    for planned in plan:
        if not isinstance(planned.layer, LoraLayer):
            with diagnosed(planned.quantizer), at_hand(planned.layer):
                planned.quantizer.prepare(bases[planned.path], planned.path)
    _prepare_others(model, {id(planned.layer) for planned in plan})
    return bases


def _prepare_others(model: nn.Module, targeted: set[int]) -> None:
    """Packed layers that get no adapter: gradients pass through them to the layers below."""
    for path, module in own_modules(model):
        if id(module) not in targeted and not isinstance(module, LoraLayer):
            for quantizer in registry().candidates(module):
                read(quantizer.prepare, module, path)


def as_linear(layer: nn.Module) -> nn.Linear:
    """A float layer as an `nn.Linear`: itself, or a transposed one turned round."""
    if isinstance(layer, nn.Linear):
        return layer
    quantizer = registry().match("", layer)
    return linear_from(quantizer.dequantize(layer), quantizer.bias(layer))
