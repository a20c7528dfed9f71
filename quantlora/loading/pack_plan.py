"""What of a model without weights is going to be packed: layers by path, stacks of experts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.adapters.read_by_model import read_by_model
from quantlora.config.lora_config import LoraConfig
from quantlora.formats.quantizer import Quantizer
from quantlora.wrapping.expert_targets import with_experts
from quantlora.wrapping.plan import PlannedLayer, once_each, plan_layer
from quantlora.wrapping.targets import Search, find_targets


@dataclass(frozen=True)
class Wanted:
    """Which layers are to be packed, in the words of `LoraConfig`."""

    target_modules: str | Iterable[str] = "all-linear"
    exclude_modules: str | Iterable[str] | None = None
    target_experts: bool = True

    def config(self) -> LoraConfig:
        fields = {name: _listed(value) for name, value in vars(self).items()}
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
    return [planned for planned in plan if planned.quantize and planned.path not in read]


def _listed(value: object) -> object:
    plain = value is None or isinstance(value, (str, bool))
    return value if plain or not isinstance(value, Iterable) else list(value)
