"""The format of adapted parameters, and whether fused experts can be packed into another."""

from __future__ import annotations

from torch import nn

from quantlora.discovery.registration import registry
from quantlora.experts.packed import PackedExperts
from quantlora.experts.stacks_format import PackedStacks
from quantlora.formats.offloaded import is_offloaded
from quantlora.formats.parameters import PackedParameters, format_of
from quantlora.formats.quantizer import Quantizer
from quantlora.layers.experts import LoraExperts
from quantlora.layers.layer import LoraLayer
from quantlora.layers.parameters import LoraParameters
from quantlora.wrapping.target import Target


def parameters_format(module: nn.Module) -> PackedParameters:
    """The format of a module's parameters; of fused experts, that of their stacks."""
    if isinstance(module, PackedExperts) and module.stacks:
        stack = next(iter(module.stacks.values()))
        return PackedStacks(registry().quantizer(stack.format))
    return format_of(module)


def floating_names(target: Target, current: Quantizer, asked: Quantizer) -> list[str]:
    """Those of the target's parameters that are not in the format ``asked``."""
    layer = target.layer
    base = layer.base_layer if isinstance(layer, LoraLayer) else layer
    if isinstance(base, PackedExperts) and current.name == asked.name:
        return [name for name in target.parameters if name not in base.stacks]
    return [] if current.name == asked.name else list(target.parameters)


def why_parameters_not_packed(
    target: Target, current: Quantizer, wanted: Quantizer, wrapper: type[LoraParameters]
) -> str:
    """Why the parameters of ``target`` cannot be packed by ``wanted``; empty where they can."""
    if not current.is_float and current.name != wanted.name:
        return f"its parameters are in format {current.name!r} already"
    if not issubclass(wrapper, LoraExperts):
        return "parameters cannot be packed, only layers and the experts of Transformers"
    if not wanted.can_quantize_experts:
        return f"{wanted.name!r} packs layers only, no fused experts"
    return why_not_replaced(target.layer)


def why_not_replaced(layer: nn.Module) -> str:
    """Why no packed layer can take the place of a float one; empty where it can."""
    if is_offloaded(layer):
        return "its weights are offloaded (device_map) and the packed ones would not be"
    if isinstance(layer, LoraLayer):
        return "it has an adapter already, which refers to the float weight"
    return ""
