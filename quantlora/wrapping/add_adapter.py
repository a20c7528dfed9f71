"""`add_adapter`: what `quantlora.wrap` does to a model, in six stops.

    find_targets -> registry.match -> quantize / initialize -> the variant's class -> set_module

All of it is decided in `plan.py` before anything is touched, and done in a `Transaction`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from quantlora.adapters.adapter_modules import frozen_modules
from quantlora.adapters.disabling import enable_adapters
from quantlora.adapters.modules_to_save import ModulesToSaveWrapper
from quantlora.adapters.state import AdapterState, adapter_state, has_adapters, set_state
from quantlora.adapters.switch import set_adapter
from quantlora.config.lora_config import LoraConfig
from quantlora.discovery.registration import registry
from quantlora.errors import ConfigError
from quantlora.files.reference import Reference, open_reference
from quantlora.formats.autocast import without_autocast
from quantlora.formats.layouts import layout_of, with_weights
from quantlora.formats.offloaded import onloaded
from quantlora.formats.quantizer import Quantizer
from quantlora.initializers.initializer import InitContext, Initializer
from quantlora.layers.hooks import move_hooks
from quantlora.layers.layer import LoraLayer
from quantlora.layers.trained_bias import TrainedBias
from quantlora.layers.trained_tokens import TrainedTokens
from quantlora.names import check_name
from quantlora.wrapping.attention_targets import place
from quantlora.wrapping.base_changes import initialize
from quantlora.wrapping.bases import as_linear, frozen_bases, reference_for
from quantlora.wrapping.biases import find_biases
from quantlora.wrapping.modules_to_save import add_saved, find_saved, with_heads
from quantlora.wrapping.plan import AUTO, PlannedLayer, asked_format, make_plan, once_each
from quantlora.wrapping.tied_layers import tie_layers
from quantlora.wrapping.transaction import Transaction


def add_adapter(
    model: nn.Module,
    config: LoraConfig | None = None,
    *,
    backend: str = AUTO,
    adapter_name: str = "default",
    quantize_options: Mapping[str, Any] | None = None,
    reference: Reference | str | os.PathLike[str] | None = None,
    **fields: Any,
) -> None:
    """`quantlora.wrap` but for Transformers' methods; arguments and errors are described there."""
    settings = with_heads(model, given_config(config, fields))
    check_name(adapter_name)
    initializer = registry().initializer(settings)
    initializer.check(settings)
    asked = asked_format(backend)
    options = _options(initializer, settings, asked, quantize_options)
    weights = None if reference is None else open_reference(reference)
    plan = make_plan(model, settings, asked, adapter_name)

    def start(planned: PlannedLayer, layer: LoraLayer) -> None:
        if planned.target.tokens:
            return  # they start as they are
        initialize(initializer, layer, _context(planned, settings, adapter_name, weights))
        layer.finish_adapter(adapter_name, settings)

    apply_plan(model, plan, settings, adapter_name, start, options)


def _options(
    initializer: Initializer,
    config: LoraConfig,
    asked: Quantizer | None,
    given: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What to quantize with: the initializer's wishes, then the user's."""
    wishes = {} if asked is None else initializer.quantize_options(config, asked)
    return {**wishes, **(given or {})}


@without_autocast
def apply_plan(
    model: nn.Module,
    plan: list[PlannedLayer],
    config: LoraConfig,
    adapter_name: str,
    start: Callable[[PlannedLayer, LoraLayer], None],
    quantize_options: Mapping[str, Any] | None = None,
    start_saved: Callable[[str, ModulesToSaveWrapper], None] = lambda path, module: None,
    start_bias: Callable[[TrainedBias], None] = lambda bias: None,
) -> None:
    """Carry out ``plan`` as one transaction.

    A layer that the model has at several paths is one LoRA layer at all of them.

    Args:
        start: gives each new adapter its values.
        start_saved: the same for copies of modules trained in full, which begin as the original.
        start_bias: the same for trained biases of the model, which begin as its own.
    """
    saved = find_saved(model, config)
    once = once_each(plan)
    with Transaction(model):
        bases = frozen_bases(model, once, quantize_options or {})
        layers: dict[int, LoraLayer] = {}
        for planned in once:
            with onloaded(_frozen(bases[planned.path])):
                layer = _lora_layer(planned, bases[planned.path])
                _add_adapter(layer, planned, config, adapter_name)
                start(planned, layer)
            if not isinstance(planned.layer, LoraLayer):
                move_hooks(planned.layer, layer)
            layers[id(planned.layer)] = layer
        for planned in plan:
            place(model, planned.path, layers[id(planned.layer)])
        for path, module in saved.items():
            start_saved(path, add_saved(model, path, module, adapter_name))
        tie_layers(model, config, adapter_name)
        biases = find_biases(model, config, {planned.path for planned in plan})
        for bias in biases:
            start_bias(bias)
        _finish(model, config, adapter_name, biases)


def given_config(config: LoraConfig | None, fields: Mapping[str, Any]) -> LoraConfig:
    """The one config, or the one that ``fields`` make."""
    if config is None:
        return LoraConfig.from_fields(fields)
    if fields:
        raise ConfigError(f"give either a config or its fields, not both: {', '.join(fields)}.")
    if not isinstance(config, LoraConfig):
        kind = f"{type(config).__module__}.{type(config).__qualname__}"
        raise ConfigError(
            f"config is {kind}, not quantlora.LoraConfig, whose fields have PEFT's names: "
            f"quantlora.LoraConfig(r=16, target_modules=[...])."
        )
    return config


def _frozen(base: nn.Module) -> nn.Module:
    return base.base_layer if isinstance(base, LoraLayer) else base


def _lora_layer(planned: PlannedLayer, base: nn.Module) -> LoraLayer:
    if isinstance(base, LoraLayer):
        return planned.wrapper.adopt(base)
    layer = planned.wrapper(base, planned.quantizer, planned.path)
    layer.packed_here = planned.quantize
    if planned.quantize and layout_of(planned.layer) is not None:
        layer.packed_from = (with_weights(planned.layer, torch.empty(0), None),)
    return layer


def _add_adapter(layer: LoraLayer, planned: PlannedLayer, config: LoraConfig, adapter: str) -> None:
    target = planned.target
    dtype = _adapter_dtype(layer.base_layer, planned.quantizer)
    if isinstance(layer, TrainedTokens):
        layer.add_tokens(adapter, target.tokens, dtype)
        return
    layer.add_adapter(adapter, config, target.r, target.lora_alpha, dtype)


def _adapter_dtype(base: nn.Module, quantizer: Quantizer) -> torch.dtype:
    """float64 over a float64 base, else float32, as PEFT's ``autocast_adapter_dtype`` has it."""
    stored = {tensor.dtype for tensor in (*base.parameters(), *base.buffers())}
    double = torch.float64 in (*stored, quantizer.compute_dtype(base))
    return torch.float64 if double else torch.float32


def _context(
    planned: PlannedLayer, config: LoraConfig, adapter: str, reference: Reference | None
) -> InitContext:
    path, layer = planned.path, planned.layer
    if planned.quantize:
        return InitContext(path, adapter, config, lambda: as_linear(layer).weight.data, fresh=True)
    given = None if reference is None else partial(reference_for, reference, path, layer)
    return InitContext(path, adapter, config, given)


def _finish(model: nn.Module, config: LoraConfig, adapter: str, biases: list[TrainedBias]) -> None:
    """Freeze the base, note the adapter, make it the active one."""
    old = adapter_state(model) if has_adapters(model) else AdapterState()
    if not old.configs:
        model.requires_grad_(False)
    configs = {**old.configs, adapter: config}
    trained = {**old.biases, adapter: biases} if biases else old.biases
    set_state(model, replace(old, configs=configs, biases=dict(trained)))
    set_adapter(model, adapter)
    enable_adapters(model)  # also after disable_adapters: the new one is to count
    _leave_fast_paths(model)


def _leave_fast_paths(model: nn.Module) -> None:
    """Make torch's own encoder call its layers: its fused kernel reads one weight for all samples.

    A mixed batch needs one by sample.
    """
    for _, module in frozen_modules(model):
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
