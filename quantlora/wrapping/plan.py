"""What `wrap` is going to do, decided before anything is touched; `explain` shows the same plan."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.adapters.not_runnable import idle
from quantlora.adapters.state import taken
from quantlora.config.lora_config import LoraConfig
from quantlora.config.picked_paths import is_all_linear
from quantlora.discovery.registration import registry
from quantlora.errors import AdapterError, BackendError, ConfigError, TargetError, warn
from quantlora.experts.stacks_format import PackedStacks
from quantlora.formats.layouts import is_linear_kind
from quantlora.formats.quantizer import Quantizer
from quantlora.layers.adapter_module import AdapterModule
from quantlora.layers.experts import LoraExperts, parameters_wrapper
from quantlora.layers.layer import LoraLayer
from quantlora.layers.parameters import LoraParameters
from quantlora.layers.tied import TiedLayer
from quantlora.layers.trained_tokens import TrainedTokens
from quantlora.wrapping.all_linear import left_out
from quantlora.wrapping.dequantized import dequantized_notice
from quantlora.wrapping.expert_formats import (
    floating_names,
    parameters_format,
    why_not_replaced,
    why_parameters_not_packed,
)
from quantlora.wrapping.expert_targets import is_random
from quantlora.wrapping.modules_to_save import find_saved
from quantlora.wrapping.never_called import never_called
from quantlora.wrapping.sizes import check_not_empty, check_rank, too_wide
from quantlora.wrapping.surroundings import check_surroundings
from quantlora.wrapping.target import Target
from quantlora.wrapping.targets import Search, find_targets
from quantlora.wrapping.ties import two_ways
from quantlora.wrapping.unmatched_names import unmatched_notice
from quantlora.wrapping.without_adapter import expert_notices


@dataclass(frozen=True)
class PlannedLayer:
    """One layer's future: its format, whether it is quantized first, its LoRA class.

    ``shape`` is ``(out_features, in_features)``; None for parameters.
    """

    target: Target
    quantizer: Quantizer
    quantize: bool
    wrapper: type[LoraLayer]
    shape: tuple[int, int] | None = None

    @property
    def path(self) -> str:
        return self.target.path

    @property
    def layer(self) -> nn.Module:
        return self.target.layer

    @property
    def packer(self) -> Quantizer:
        """The format that packs it; that of fused experts packs each of their matrices."""
        return self.quantizer.packer if isinstance(self.quantizer, PackedStacks) else self.quantizer


@dataclass(frozen=True)
class Plan:
    """What an adapter will be on: layers, and by path the modules that it trains in full."""

    layers: list[PlannedLayer]
    saved: dict[str, nn.Module]


def make_plan(
    adapted: AdaptedModel,
    config: LoraConfig,
    asked: Quantizer | None,
    adapter: str,
    strict: bool = True,
) -> Plan:
    """What `wrap` is going to do, or the error that it would raise.

    Args:
        asked: the format that the user asks for; None: each layer as it is.
        strict: False for an adapter that is loaded, whose config may name what has no effect.
    """
    adapted.state.check_free(adapter)
    layers = plan_layers(adapted, config, asked, adapter, strict)
    if text := idle(adapted, [planned.layer for planned in layers]):
        warn(text)
    saved = find_saved(adapted, config)
    whole = [planned.path for planned in layers if not planned.target.tokens]
    if why := never_called(adapted, config, [*whole, *saved]):
        if strict:
            raise TargetError(why)
        warn(why)
    return Plan(layers, saved)


def plan_layers(
    adapted: AdaptedModel,
    config: LoraConfig,
    asked: Quantizer | None,
    adapter: str = "",
    strict: bool = True,
) -> list[PlannedLayer]:
    """One `PlannedLayer` for each target; arguments and errors as in `make_plan`."""
    search = Search(adapted, config)
    targets = find_targets(search, strict)
    plan = [plan_layer(target, config, asked, adapter) for target in targets]
    for notice in notices(search, plan) if strict else ():
        warn(notice)
    check_model(adapted.model, plan)
    return plan


def notices(search: Search, plan: list[PlannedLayer]) -> list[str]:
    """What `wrap` gets through with, and says."""
    floats = [p.target for p in plan if p.quantizer.is_float]
    packed = len(floats) < len(plan)
    targets = [p.target for p in plan]
    about_experts = expert_notices(search, targets, floats, packed)
    wide = too_wide({p.target: p.shape for p in plan if p.shape})
    other = left_out(search.picked) if search.names.all_linear else ""
    unpacked = dequantized_notice(search.adapted.model) if floats else ""
    unmatched = unmatched_notice(search, targets)
    return [text for text in (unmatched, wide, other, unpacked, *about_experts) if text]


def plan_layer(
    target: Target, config: LoraConfig, asked: Quantizer | None, adapter: str
) -> PlannedLayer:
    """The plan for one target, or the error that `wrap` would raise for it."""
    path, layer = target.path, target.layer
    if isinstance(layer, LoraLayer):
        _check_addable(path, layer, adapter)
    if target.parameters:
        return _plan_parameters(target, config, asked)
    if target.tokens:
        return _plan_tokens(target, config)
    if isinstance(layer, LoraLayer):
        current, base = layer.quantizer, layer.base_layer
    else:
        current, base = registry().match(path, layer), layer
    shape = current.shape(base)
    check_rank(target, shape, config)
    quantizer = _format(path, layer, current, asked)
    check_not_empty(path, shape, quantizer)
    if not isinstance(layer, LoraLayer) or config.variant != layer.variant:
        check_surroundings(path, base, current, quantizer, config)
    wrapper = registry().wrapper(config.variant, base, quantizer, path)
    return PlannedLayer(target, quantizer, quantizer is not current, wrapper, shape)


def _plan_parameters(target: Target, config: LoraConfig, asked: Quantizer | None) -> PlannedLayer:
    given = {name: getattr(config, name) for name in ("lora_dropout", "lora_bias")}
    wrapper = parameters_wrapper(target.layer, target.parameters)
    if not config.target_parameters or issubclass(wrapper, LoraExperts):
        del given["lora_dropout"]  # a whole attention, where it has no effect, as in PEFT
    given["fan_in_fan_out"] = config.fan_in_fan_out
    given[f"variant {config.variant!r}"] = config.variant != "lora"
    given["init_lora_weights"] = not (is_random(config) or _starts(config, wrapper))
    if faults := [name for name, is_set in given.items() if is_set]:
        raise ConfigError(
            f"{target.path}: adapters on parameters (target_parameters) cannot have "
            f"{', '.join(faults)}; set it for an adapter without target_parameters."
        )
    current = target.layer.quantizer if isinstance(target.layer, LoraLayer) else None
    current = parameters_format(target.layer) if current is None else current
    if asked is None or not floating_names(target, current, asked):
        return PlannedLayer(target, current, False, wrapper)
    unable = current.is_float and not asked.can_quantize_experts
    if is_all_linear(config) and unable and issubclass(wrapper, LoraExperts):
        return PlannedLayer(target, current, False, wrapper)  # nobody has named them
    if why := why_parameters_not_packed(target, current, asked, wrapper):
        raise _backend_error(target.path, asked, why)
    return PlannedLayer(target, PackedStacks(asked), True, wrapper)


def _starts(config: LoraConfig, wrapper: type[LoraParameters]) -> bool:
    """Whether the initializer is one for fused experts, and these are some."""
    return issubclass(wrapper, LoraExperts) and registry().initializer(config).takes_experts


def _plan_tokens(target: Target, config: LoraConfig) -> PlannedLayer:
    path, layer = target.path, target.layer
    saved = path.endswith(tuple(config.modules_to_save or ()))
    other = isinstance(layer, (AdapterModule, TiedLayer))
    if saved or (other and not isinstance(layer, TrainedTokens)):
        raise AdapterError(two_ways(path))
    base = layer.base_layer if isinstance(layer, TrainedTokens) else layer
    plain = isinstance(base, (nn.Embedding, nn.Linear)) and getattr(base, "max_norm", None) is None
    current = registry().match(path, base) if plain else None
    if current is None or not current.is_float:
        raise ConfigError(
            f"{path}: trainable_token_indices is for float embeddings and linear heads (without "
            f"max_norm), and this is a {type(base).__name__}."
        )
    return PlannedLayer(target, current, False, TrainedTokens)


def check_model(model: nn.Module, plan: list[PlannedLayer]) -> None:
    """Let each format look at the model as a whole; raises what `wrap` would raise."""
    as_they_are = [p for p in plan if not (p.quantize or isinstance(p.layer, LoraLayer))]
    for quantizer in dict.fromkeys(planned.quantizer for planned in as_they_are):
        layers = {p.path: p.layer for p in as_they_are if p.quantizer is quantizer}
        quantizer.check_model(model, layers)


def _check_addable(path: str, layer: LoraLayer, adapter: str) -> None:
    if layer.has_adapter(adapter):
        raise AdapterError(f"{path}: {taken(adapter)}")
    layer.check_unmerged("another adapter is added")


def _format(path: str, layer: nn.Module, current: Quantizer, asked: Quantizer | None) -> Quantizer:
    """The layer's future format: its own, or ``asked`` if it is float and that can quantize."""
    if asked is None or asked.name == current.name:
        return current
    if why := _why_not_packed(layer, current, asked):
        raise _backend_error(path, asked, why)
    return asked


def _backend_error(path: str, asked: Quantizer, why: str) -> BackendError:
    return BackendError(
        f'{path}: backend={asked.name!r} was asked for, but {why}. Use backend="auto" to take each '
        f"layer as it is, or load the model in the format you want."
    )


def _why_not_packed(layer: nn.Module, current: Quantizer, wanted: Quantizer) -> str:
    if not current.is_float:
        return f"it is in format {current.name!r} already"
    if not wanted.can_quantize:
        return f"{wanted.name!r} only reads layers, it cannot quantize"
    if not is_linear_kind(layer):
        return f"{type(layer).__name__} is no linear layer, and only those can be packed"
    return why_not_replaced(layer)


def once_each(plan: list[PlannedLayer]) -> list[PlannedLayer]:
    """``plan`` with each layer once, at its first path; a model may have one layer at several."""
    return list({id(planned.layer): planned for planned in reversed(plan)}.values())[::-1]
