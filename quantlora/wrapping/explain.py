"""`explain`: what `wrap` would do to each layer, or why it would not. Changes nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.adapters.not_runnable import idle
from quantlora.config.lora_config import LoraConfig
from quantlora.config.lora_fields import LoraFields, shows_fields
from quantlora.config.peft_config import PeftConfig
from quantlora.config.picked_paths import targeted
from quantlora.discovery.registration import AUTO, registry
from quantlora.errors import ConfigError, QuantloraError, TargetError
from quantlora.formats.quantizer import Quantizer
from quantlora.layers.layer import LoraLayer
from quantlora.names import check_name
from quantlora.wrapping.add_adapter import for_model, given_config
from quantlora.wrapping.all_linear import (
    computes_otherwise,
    looks_linear,
)
from quantlora.wrapping.expert_formats import parameters_format
from quantlora.wrapping.explanation import Explanation, LayerRow
from quantlora.wrapping.inference_rule import inference_rule
from quantlora.wrapping.plan import PlannedLayer, check_model, notices, plan_layer
from quantlora.wrapping.target import Target
from quantlora.wrapping.targets import Search, find_targets
from quantlora.wrapping.without_adapter import without_adapter

if TYPE_CHECKING:
    from typing_extensions import Unpack

#: Fields of the config that take a layer out again, and how to say so.
_REASONS = {
    ("modules_to_save",): "in modules_to_save: trained in full",
    ("exclude_modules",): "left out by exclude_modules",
    ("layers_to_transform", "layers_pattern"): "not in layers_to_transform",
}


@shows_fields
def explain(
    model: nn.Module,
    config: LoraConfig | PeftConfig | None = None,
    backend: str = AUTO,
    *,
    adapter_name: str = "default",
    **fields: Unpack[LoraFields],
) -> Explanation:
    """Show what ``wrap`` with the same arguments would do; ``print`` it for a table.

    Errors that `wrap` would raise are shown in the row or under ``problems``, not raised.
    """
    problems: list[str] = []
    asked: Quantizer | None = None
    settings = config if isinstance(config, LoraConfig) else None
    try:
        settings = given_config(model, config, fields)
        check_name(adapter_name)
        registry().initializer(settings).check(settings)
        asked = registry().asked(backend)
    except (QuantloraError, TypeError) as error:
        problems.append(str(error))
    if settings is None:
        return Explanation((), tuple(problems))
    try:
        return _explain(AdaptedModel(model), settings, asked, adapter_name, problems)
    except ConfigError as error:  # an unknown initializer: layers cannot be planned with it
        return Explanation((), tuple(problems) or (str(error),))


def _explain(
    adapted: AdaptedModel,
    config: LoraConfig,
    asked: Quantizer | None,
    adapter: str,
    problems: list[str],
) -> Explanation:
    config = for_model(adapted, config)
    search = Search(adapted, config)
    targets: dict[str, Target] = {}
    try:
        targets = {target.path: target for target in find_targets(search)}
    except TargetError as error:
        problems.append(str(error))
    left = {layer.path: layer for layer in without_adapter(search, targets.values())}
    plan: list[PlannedLayer] = []
    rows: list[LayerRow] = []
    for path, layer in adapted.modules.items():
        if path in targets:
            found = _try_plan(targets[path], config, None if problems else asked, adapter)
            rows.append(_targeted_row(targets[path], found))
            plan += [found] if isinstance(found, PlannedLayer) else []
        elif path and (looks_linear(layer) or computes_otherwise(layer)):
            rows.append(_row(path, layer, reason=_why_not(path, layer, search)))
        elif path in left:
            current = parameters_format(layer)
            rows.append(_row(path, layer, current, reason=left[path].reason))
    without = idle(adapted, [planned.layer for planned in plan])
    warnings = tuple(filter(None, [*notices(search, plan), without]))
    problems = [*problems, *_problems_of_model(adapted.model, plan)]
    inference = inference_rule(adapted.model, plan)
    return Explanation(tuple(rows), tuple(problems), warnings, inference)


def _try_plan(
    target: Target, config: LoraConfig, asked: Quantizer | None, adapter: str
) -> PlannedLayer | QuantloraError:
    try:
        return plan_layer(target, config, asked, adapter)
    except QuantloraError as error:
        return error


def _problems_of_model(model: nn.Module, plan: list[PlannedLayer]) -> list[str]:
    try:
        check_model(model, plan)
    except QuantloraError as error:
        return [str(error)]
    return []


def _targeted_row(target: Target, found: PlannedLayer | QuantloraError) -> LayerRow:
    if isinstance(found, QuantloraError):
        return _row(target.path, target.layer, reason=str(found), fails=True)
    current = found.quantizer if target.parameters else None
    if target.parameters and found.quantize:
        current = parameters_format(target.layer)
    row = _row(target.path, target.layer, current)
    return replace(
        row,
        format=f"{row.format} -> {found.quantizer.name}" if found.quantize else row.format,
        wrapper=found.wrapper.__name__,
        r=target.r,
        lora_alpha=target.lora_alpha,
    )


def _row(path: str, layer: nn.Module, current: Quantizer | None = None, **facts: Any) -> LayerRow:
    base = layer.base_layer if isinstance(layer, LoraLayer) else layer
    if isinstance(layer, LoraLayer):
        current = layer.quantizer
    takers = [current] if current is not None else registry().candidates(layer)
    if len(takers) != 1:
        return LayerRow(path, type(base).__name__, None, "unknown", **facts)
    current = takers[0]
    details = ", ".join(f"{key} {_shown(value)}" for key, value in current.describe(base).items())
    return LayerRow(path, type(base).__name__, current.shape(base), current.name, details, **facts)


def _shown(value: Any) -> str:
    """A list of sizes as ``128 x 128``."""
    return " x ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _why_not(path: str, layer: nn.Module, search: Search) -> str:
    config = search.config
    if search.names.all_linear and computes_otherwise(layer):
        return f"the forward of {type(layer).__name__} does more than a linear layer's product"
    if layer in search.heads:
        return 'the output layer: "all-linear" leaves it out'
    for fields, reason in _REASONS.items():
        without: dict[str, Any] = dict.fromkeys(fields)
        if not targeted(path, config) and targeted(path, replace(config, **without)):
            return reason
    return "not in target_modules"
