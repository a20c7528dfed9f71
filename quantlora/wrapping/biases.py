"""``bias="all"`` and ``bias="lora_only"``: which biases of the model an adapter trains."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.adapters.adapter_modules import plain_module
from quantlora.adapters.state import adapter_state, has_adapters
from quantlora.config.lora_config import LoraConfig
from quantlora.layers.layer import LoraLayer
from quantlora.layers.tied import TiedLayer
from quantlora.layers.trained_bias import TrainedBias, own_bias
from quantlora.names import plain_path


def find_biases(
    adapted: AdaptedModel, config: LoraConfig, targets: Collection[str]
) -> list[TrainedBias]:
    """The biases that ``config`` trains, each starting at the model's own value.

    Args:
        targets: paths of the adapter's layers; ``"lora_only"`` is for theirs. PEFT's names for
            these have a ``base_layer`` in them.
    """
    found: dict[int, TrainedBias] = {}
    for path, module in adapted.modules.items() if config.bias != "none" else ():
        mine = path in targets
        if not mine and config.bias == "lora_only":
            continue
        owner = plain_module(module)[0] if isinstance(module, (LoraLayer, TiedLayer)) else module
        plain = _plain(
            adapted.model, owner, buffers=mine
        )  # upstream's own forward may not train them
        if plain is None:
            continue
        name = f"{plain_path(path)}.{'base_layer.' if mine else ''}bias".removeprefix(".")
        known = found.get(id(owner))
        names = (*known.names, name) if known else (name,)
        own = known.own if known else nn.Parameter(plain.detach().clone())
        found[id(owner)] = TrainedBias(names, owner, plain, own)
    return list(found.values())


def _plain(model: nn.Module, owner: nn.Module, buffers: bool) -> Tensor | None:
    """The model's own bias, also where an adapter's is in its place."""
    all_biases = adapter_state(model).biases.values() if has_adapters(model) else ()
    placed = (one for biases in all_biases for one in biases if one.owner is owner)
    return next((one.plain for one in placed), own_bias(owner, buffers))
