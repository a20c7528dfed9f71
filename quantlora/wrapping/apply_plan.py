"""A plan is carried out: frozen layers quantized or as they are, adapters put on, state noted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.adapters.disabling import enable
from quantlora.adapters.state import set_state
from quantlora.adapters.switch import activate
from quantlora.formats.autocast import without_autocast
from quantlora.formats.layouts import layout_of, with_weights
from quantlora.formats.offloaded import onloaded
from quantlora.formats.quantizer import Quantizer
from quantlora.layers.hooks import move_hooks
from quantlora.layers.layer import LoraLayer
from quantlora.layers.trained_bias import TrainedBias
from quantlora.layers.trained_tokens import TrainedTokens
from quantlora.wrapping.attention_targets import set_layer
from quantlora.wrapping.bases import frozen_bases
from quantlora.wrapping.biases import find_biases
from quantlora.wrapping.modules_to_save import add_saved
from quantlora.wrapping.new_adapter import NewAdapter
from quantlora.wrapping.plan import Plan, PlannedLayer, once_each
from quantlora.wrapping.preparing import Preparing
from quantlora.wrapping.ties import tie_layers
from quantlora.wrapping.transaction import Transaction


@without_autocast
def apply_plan(
    adapted: AdaptedModel,
    plan: Plan,
    adapter: NewAdapter,
    quantize_options: Mapping[str, Any] | None = None,
) -> AdaptedModel:
    """Carry out ``plan``, made for ``adapted``, as one transaction; returns the model with it."""
    model, layers = adapted.model, plan.layers
    with Transaction(model) as transaction:
        preparing = Preparing(adapted, once_each(layers), transaction)
        preparing.prepare_model()
        bases = frozen_bases(adapted, once_each(layers), quantize_options or {})
        preparing.prepare_layers(bases)
        _put_layers(model, layers, bases, adapter)
        for path, module in plan.saved.items():
            adapter.start_saved(path, add_saved(model, path, module, adapter.name))
        now = AdaptedModel(model)
        tie_layers(now, adapter.config, adapter.name)
        biases = find_biases(now, adapter.config, {planned.path for planned in layers})
        for bias in biases:
            adapter.start_bias(bias)
        _note(now, adapter, biases)
        _leave_fast_paths(adapted.modules.values())
    return now


def _put_layers(
    model: nn.Module,
    plan: list[PlannedLayer],
    bases: Mapping[str, nn.Module],
    adapter: NewAdapter,
) -> None:
    """Put LoRA layers around ``bases``; a layer that is at several paths is one at all of them."""
    layers: dict[int, LoraLayer] = {}
    for planned in once_each(plan):
        layers[id(planned.layer)] = _with_adapter(planned, bases[planned.path], adapter)
    for planned in plan:
        set_layer(model, planned.path, layers[id(planned.layer)])


def _with_adapter(planned: PlannedLayer, base: nn.Module, adapter: NewAdapter) -> LoraLayer:
    target, frozen = planned.target, base.base_layer if isinstance(base, LoraLayer) else base
    with onloaded(frozen):
        dtype = _adapter_dtype(frozen, planned.quantizer)
        layer = _lora_layer(planned, base)
        if isinstance(layer, TrainedTokens):
            layer.add_tokens(adapter.name, target.tokens, dtype)
        else:
            layer.add_adapter(adapter.name, adapter.config, target.r, target.lora_alpha, dtype)
        adapter.start(planned, layer)
    if not isinstance(planned.layer, LoraLayer):
        move_hooks(planned.layer, layer)
    return layer


def _lora_layer(planned: PlannedLayer, base: nn.Module) -> LoraLayer:
    if isinstance(base, LoraLayer):
        return planned.wrapper.adopt(base)
    layer = planned.wrapper(base, planned.quantizer, planned.path)
    layer.packed_here = planned.quantize
    if planned.quantize and layout_of(planned.layer) is not None:
        layer.packed_from = (with_weights(planned.layer, torch.empty(0), None),)
    return layer


def _adapter_dtype(base: nn.Module, quantizer: Quantizer) -> torch.dtype:
    """float64 over a float64 base, else float32, as PEFT's ``autocast_adapter_dtype`` has it."""
    dtypes = {tensor.dtype for tensor in (*base.parameters(), *base.buffers())}
    double = torch.float64 in (*dtypes, quantizer.compute_dtype(base))
    return torch.float64 if double else torch.float32


def _note(adapted: AdaptedModel, adapter: NewAdapter, biases: list[TrainedBias]) -> None:
    """Freeze the base, note the adapter, make it the active one."""
    old = adapted.state
    frozen = [*old.frozen, *_frozen_factors(adapted, adapter.name)]
    if not old.configs:
        adapted.model.requires_grad_(False)
    configs = {**old.configs, adapter.name: adapter.config}
    trained = {**old.biases, adapter.name: biases} if biases else old.biases
    adapted.state = replace(old, configs=configs, biases=dict(trained), frozen=frozen)
    set_state(adapted.model, adapted.state)
    activate(adapted, [adapter.name])
    if not old.applied:
        enable(adapted)  # also after disable_adapters: the new one is to count


def _frozen_factors(adapted: AdaptedModel, name: str) -> list[Tensor]:
    """What the layers' own class has frozen of the adapter."""
    layers = [layer for layer in adapted.lora_layers.values() if layer.has_adapter(name)]
    tensors = [tensor for layer in layers for tensor in layer.adapter_tensors(name).values()]
    return [tensor for tensor in tensors if not tensor.requires_grad]


def _leave_fast_paths(modules: Iterable[nn.Module]) -> None:
    """Make torch's own encoder call its layers: its fused kernel reads one weight for all samples.

    A mixed batch needs one by sample.
    """
    for module in modules:
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
