"""`add_adapter`: what `quantlora.wrap` does to a model, in five stops.

    find_targets -> registry.match -> the variant's class -> quantize -> initialize, set_submodule

All of it is decided in `plan.py` before anything is touched, and done in a `Transaction`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.config.lora_config import LoraConfig
from quantlora.config.peft_config import PeftConfig, from_peft, is_peft_config
from quantlora.discovery.registration import AUTO, registry
from quantlora.errors import ConfigError
from quantlora.files.reference import Reference, open_reference
from quantlora.names import check_name
from quantlora.wrapping.apply_plan import apply_plan
from quantlora.wrapping.expert_targets import with_experts
from quantlora.wrapping.modules_to_save import with_heads
from quantlora.wrapping.new_adapter import FreshAdapter
from quantlora.wrapping.plan import make_plan


def add_adapter(
    model: nn.Module,
    config: LoraConfig | PeftConfig | None = None,
    *,
    backend: str = AUTO,
    adapter_name: str = "default",
    quantize_options: Mapping[str, Any] | None = None,
    reference: Reference | str | os.PathLike[str] | None = None,
    **fields: Any,
) -> None:
    """`quantlora.wrap` but for Transformers' methods; arguments and errors are described there."""
    settings = given_config(model, config, fields)
    check_name(adapter_name)
    adapted = AdaptedModel(model)
    settings = for_model(adapted, settings)
    initializer, asked = registry().initializer(settings), registry().asked(backend)
    initializer.check(settings)
    wishes = {} if asked is None else initializer.quantize_options(settings, asked)
    weights = None if reference is None else open_reference(reference)
    plan = make_plan(adapted, settings, asked, adapter_name)
    adapter = FreshAdapter(adapter_name, settings, initializer, weights)
    apply_plan(adapted, plan, adapter, {**wishes, **(quantize_options or {})})


def for_model(adapted: AdaptedModel, config: LoraConfig) -> LoraConfig:
    """``config`` with what it means in this model: the head of its task, and fused experts."""
    return with_experts(adapted.modules, with_heads(adapted.model, config))


def given_config(model: nn.Module, config: Any, fields: Mapping[str, Any]) -> LoraConfig:
    """The one config, ours or PEFT's, or the one that ``fields`` make."""
    if config is None:
        return LoraConfig.from_fields(fields)
    if fields:
        raise ConfigError(f"give either a config or its fields, not both: {', '.join(fields)}.")
    if is_peft_config(config):
        return from_peft(config, getattr(getattr(model, "config", None), "model_type", None))
    if isinstance(config, LoraConfig):
        return config
    kind = f"{type(config).__module__}.{type(config).__qualname__}"
    raise ConfigError(
        f"config is {kind}, neither quantlora.LoraConfig nor a LoraConfig of PEFT's: "
        f"quantlora.LoraConfig(r=16, target_modules=[...])."
    )
