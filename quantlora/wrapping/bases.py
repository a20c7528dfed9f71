"""The frozen layers under the adapters: as they are, or quantized now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.discovery.diagnosis import diagnosed
from quantlora.discovery.registration import registry
from quantlora.experts.packed import PackedExperts
from quantlora.experts.stacks_format import PackedStacks, pack_experts
from quantlora.files.reference import Reference
from quantlora.formats.finite import check_packable, check_packed
from quantlora.formats.layouts import linear_from
from quantlora.formats.quantize_options import checked_options, option_names
from quantlora.formats.quantizer import Quantizer
from quantlora.layers.experts import experts_layout
from quantlora.layers.hooks import add_state_hooks
from quantlora.layers.layer import LoraLayer
from quantlora.wrapping.plan import PlannedLayer


def frozen_bases(
    adapted: AdaptedModel, plan: list[PlannedLayer], options: Mapping[str, Any]
) -> dict[str, nn.Module]:
    """The frozen layer for each path: as it is, or quantized now."""
    bases = {planned.path: planned.layer for planned in plan}
    todo = [planned for planned in plan if planned.quantize]
    if todo:
        experts = [planned for planned in todo if planned.target.parameters]
        others = [planned for planned in todo if not planned.target.parameters]
        linears = {planned.path: as_linear(planned.layer) for planned in others}
        settings = checked_options(todo[0].packer, options)  # one format was asked for
        packed = _packed(adapted.model, todo[0].packer, linears, settings) if others else {}
        packed |= {planned.path: _packed_experts(planned, settings) for planned in experts}
        for planned in todo:
            add_state_hooks(planned.layer, packed[planned.path])
        bases |= packed
    elif options:
        _check_unused(plan, options)
    return bases


def _check_unused(plan: list[PlannedLayer], options: Mapping[str, Any]) -> None:
    """Tell of a setting that no format here knows, also where nothing is to be packed."""
    formats = {p.quantizer.name: p.quantizer for p in plan if not p.target.parameters}
    accepted = {name for quantizer in formats.values() for name in option_names(quantizer)}
    for quantizer in formats.values():
        checked_options(quantizer, {k: v for k, v in options.items() if k not in accepted})


def _packed(
    model: nn.Module,
    quantizer: Quantizer,
    linears: Mapping[str, nn.Linear],
    options: Mapping[str, Any],
) -> dict[str, nn.Module]:
    for path, linear in linears.items():
        check_packable(linear, path)
    with diagnosed(quantizer):
        layers = quantizer.quantize_layers(model, linears, **options)
    for path, layer in layers.items():
        check_packed(quantizer, layer, linears[path].weight.detach(), path)
    return layers


def _packed_experts(planned: PlannedLayer, options: Mapping[str, Any]) -> nn.Module:
    layout, quantizer = experts_layout(planned.layer), planned.quantizer
    assert layout is not None
    assert isinstance(quantizer, PackedStacks)
    done = planned.layer.stacks if isinstance(planned.layer, PackedExperts) else {}
    names = [name for name in planned.target.parameters if name not in done]
    with diagnosed(quantizer.packer):
        return pack_experts(planned.layer, layout, names, quantizer.packer, planned.path, options)


def as_linear(layer: nn.Module) -> nn.Linear:
    """A float layer as an `nn.Linear`: itself, or a transposed one turned round."""
    if isinstance(layer, nn.Linear):
        return layer
    quantizer = registry().match("", layer)
    return linear_from(quantizer.dequantize(layer), quantizer.bias(layer))


def reference_for(reference: Reference, path: str, layer: nn.Module) -> Tensor:
    """The reference's weight for ``layer`` as ``(out_features, in_features)``.

    GPT-2's `Conv1D` and embeddings are stored transposed, which a packed layer does not know any
    more. Where the layer is square, the form that is nearer to its own weight counts.
    """
    if isinstance(layer, LoraLayer):
        quantizer, layer = layer.quantizer, layer.base_layer
    else:
        quantizer = registry().match(path, layer)
    weight = reference(path)
    weight = weight.flatten(1) if weight.ndim > 2 else weight
    shape = quantizer.shape(layer)
    if weight.ndim != 2 or tuple(weight.shape) != (shape[1], shape[0]):
        return weight
    if shape[0] != shape[1]:
        return weight.t()
    packed = quantizer.dequantize(layer).float()
    given = weight.to(packed)
    return weight.t() if (packed - given.t()).norm() < (packed - given).norm() else weight
