"""`add_adapter`: what `quantlora.wrap` does to a model, in five stops.

    find_targets -> registry.match -> the variant's class -> quantize -> initialize, set_submodule

All of it is decided in `plan.py` before anything is touched, and done in a `Transaction`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.config.lora_config import LoraConfig
from quantlora.discovery.registration import registry
from quantlora.errors import ConfigError, TargetError
from quantlora.files.reference import Reference, open_reference
from quantlora.initializers.initializer import InitContext, Initializer
from quantlora.layers.layer import LoraLayer
from quantlora.names import check_name
from quantlora.wrapping.apply_plan import NewAdapter, apply_plan
from quantlora.wrapping.base_changes import initialize
from quantlora.wrapping.bases import as_linear, reference_for
from quantlora.wrapping.expert_targets import with_experts
from quantlora.wrapping.modules_to_save import find_saved, with_heads
from quantlora.wrapping.never_called import never_called
from quantlora.wrapping.plan import AUTO, PlannedLayer, asked_format, make_plan


@dataclass(frozen=True)
class FreshAdapter(NewAdapter):
    """An adapter whose values the initializer gives; ``reference`` has the original weights."""

    initializer: Initializer
    reference: Reference | None = None

    def start(self, planned: PlannedLayer, layer: LoraLayer) -> None:
        if planned.target.tokens:
            return  # they start as they are
        initialize(self.initializer, layer, self._context(planned))
        layer.finish_adapter(self.name, self.config)

    def _context(self, planned: PlannedLayer) -> InitContext:
        path, layer = planned.path, planned.layer
        facts = path, self.name, self.config
        if planned.quantize:
            return InitContext(*facts, lambda: as_linear(layer).weight.data, fresh=True)
        given = self.reference and partial(reference_for, self.reference, path, layer)
        return InitContext(*facts, given)


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
    adapted = AdaptedModel(model)
    settings = with_experts(adapted.modules, settings)
    initializer = registry().initializer(settings)
    initializer.check(settings)
    asked = asked_format(backend)
    wishes = {} if asked is None else initializer.quantize_options(settings, asked)
    weights = None if reference is None else open_reference(reference)
    adapter = FreshAdapter(adapter_name, settings, initializer, weights)
    plan = make_plan(adapted, settings, asked, adapter_name)
    saved = find_saved(adapted, settings)
    if why := never_called(adapted, settings, plan, saved):
        raise TargetError(why)
    apply_plan(adapted, plan, saved, adapter, {**wishes, **(quantize_options or {})})


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
