"""``bias="all"`` and ``bias="lora_only"``: which biases of the model an adapter trains."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.adapters.adapter_modules import plain_module
from quantlora.config.lora_config import LoraConfig
from quantlora.errors import BackendError
from quantlora.formats.offloaded import read
from quantlora.layers.layer import LoraLayer
from quantlora.layers.tied import TiedLayer
from quantlora.layers.trained_bias import TrainedBias, own_bias, unregistered_bias
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
        targeted = path in targets
        if not targeted and config.bias == "lora_only":
            continue
        owner = plain_module(module)[0] if isinstance(module, (LoraLayer, TiedLayer)) else module
        plain = _plain(adapted, owner, own_bias(owner))
        if plain is None and isinstance(module, LoraLayer):
            plain = _plain(adapted, owner, _of_layer(module, owner, path))
        if plain is None:
            continue
        name = f"{plain_path(path)}.{'base_layer.' if targeted else ''}bias".removeprefix(".")
        earlier = found.get(id(owner))
        names = (*earlier.names, name) if earlier else (name,)
        trained = earlier.parameter if earlier else nn.Parameter(plain.detach().clone())
        found[id(owner)] = TrainedBias(names, owner, plain, trained)
    return list(found.values())


def _plain(adapted: AdaptedModel, owner: nn.Module, found: Tensor | None) -> Tensor | None:
    """The model's ``found`` bias, also where an adapter's is in its place."""
    every = adapted.state.biases.values()
    placed = (bias for biases in every for bias in biases if bias.owner is owner)
    return next((bias.plain for bias in placed), found)


def _of_layer(layer: LoraLayer, base: nn.Module, path: str) -> Tensor | None:
    """The bias that the layer's format has elsewhere than in a parameter, if it can be trained."""
    quantizer = layer.plain_base[1]
    bias = read(quantizer.bias, base)
    if bias is None:
        return None
    found = unregistered_bias(base, packed=not quantizer.is_float)
    if found is None or found.shape != bias.shape:
        raise BackendError(
            f"{path}: the bias of this {type(base).__name__} is computed, or kept where format "
            f"{quantizer.name!r} alone finds it, and would not be trained. Use bias='none'; "
            f"lora_bias=True gives the adapter a bias of its own."
        )
    return found
