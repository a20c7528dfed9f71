"""What of a model without weights is going to be packed: layers by path, stacks of experts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.adapters.read_by_model import read_by_model
from quantlora.config.lora_config import LoraConfig
from quantlora.config.picked_paths import TargetNames, is_all_linear
from quantlora.errors import warn
from quantlora.formats.quantizer import Quantizer
from quantlora.layers.experts import experts_layout
from quantlora.names import plain_path
from quantlora.suggestions import some
from quantlora.wrapping.all_linear import output_heads
from quantlora.wrapping.expert_targets import with_experts
from quantlora.wrapping.plan import PlannedLayer, once_each, plan_layer
from quantlora.wrapping.targets import Search, find_targets

#: The share of a model from which on matrices that stay float are named.
_LEAST = 0.01


@dataclass(frozen=True)
class Wanted:
    """Which layers are to be packed, in the words of `LoraConfig`."""

    target_modules: str | Iterable[str] = "all-linear"
    exclude_modules: str | Iterable[str] | None = None
    target_experts: bool = True

    def config(self) -> LoraConfig:
        fields = {name: listed(value) for name, value in vars(self).items()}
        return LoraConfig.from_fields(fields)


def packing_plan(model: nn.Module, quantizer: Quantizer, wanted: Wanted) -> list[PlannedLayer]:
    """The layers and stacks of ``model`` that ``quantizer`` packs, each once.

    Raises what `quantize` raises.
    """
    adapted = AdaptedModel(model)
    config = with_experts(adapted.modules, wanted.config())
    targets = find_targets(Search(adapted, config))
    plan = once_each([plan_layer(target, config, quantizer, "") for target in targets])
    read = read_by_model(model, [planned.path for planned in plan])
    plan = [planned for planned in plan if planned.quantize and planned.path not in read]
    if is_all_linear(config) and (notice := stays_float(adapted, config, plan)):
        warn(notice)
    return plan


def stays_float(adapted: AdaptedModel, config: LoraConfig, plan: list[PlannedLayer]) -> str:
    """What to say of matrices that are not packed; empty where they are few.

    Embeddings and output heads stay float always; what the user leaves out does on purpose.
    """
    packed = {f"{planned.path}.{name}" for planned in plan for name in _names(planned)}
    meant = TargetNames(config)
    heads = output_heads(adapted.model, config)
    left = {
        f"{path}.{name}": parameter
        for path, module in adapted.modules.items()
        if meant.pick(plain_path(path)) and not isinstance(module, nn.Embedding)
        if module not in heads and (config.target_experts or experts_layout(module) is None)
        for name, parameter in module._parameters.items()
        if parameter is not None and parameter.dim() > 1 and not name.endswith("bias")
    }
    left = {name: parameter for name, parameter in left.items() if name not in packed}
    total = sum(parameter.numel() for parameter in adapted.model.parameters()) or 1
    share = sum(parameter.numel() for parameter in left.values()) / total
    if share < _LEAST:
        return ""
    return (
        f"load: {share:.0%} of the model's parameters stay float besides embeddings and head: "
        f"{some(left, 4)}. No layer of a known form holds them, or the format cannot pack them; "
        f"exclude_modules leaves them out without this warning."
    )


def _names(planned: PlannedLayer) -> tuple[str, ...]:
    return planned.target.parameters or tuple(planned.layer._parameters)


def listed(value: Any) -> Any:
    """``value``, other iterables than strings as lists."""
    plain = value is None or isinstance(value, (str, bool))
    return value if plain or not isinstance(value, Iterable) else list(value)
