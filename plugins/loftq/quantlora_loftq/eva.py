"""EVA: A starts at the directions that explain most of a layer's input; ranks follow.

Paischer et al. 2024, arXiv:2410.07170. Only activations are looked at, so it works on every packed
base, and leaves it as it is: B starts at zero. Fields and rules are those of PEFT's ``eva_config``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from re import escape
from typing import Any, ClassVar

import torch
from torch import nn

from quantlora import (
    AdapterWarning,
    ConfigError,
    InitContext,
    Initializer,
    LoraConfig,
    LoraLayer,
    known_adapter,
    lora_layers,
    registry,
)
from quantlora_loftq.eva_config import EvaConfig
from quantlora_loftq.eva_watch import collect
from quantlora_loftq.ranks import redistribute, with_rank


class Eva(Initializer):
    """LoRA's own first values, until `initialize_lora_eva_weights` has seen some data."""

    name: ClassVar[str] = "eva"

    def check(self, config: LoraConfig) -> None:
        EvaConfig.of(config)
        warnings.warn(
            "init_lora_weights='eva' needs data: call quantlora_loftq.initialize_lora_eva_weights("
            "model, batches) before training. Until then A and B are LoRA's own.",
            AdapterWarning,
            stacklevel=4,
        )

    def initialize(self, layer: LoraLayer, context: InitContext) -> None:
        registry().initializers["default"].initialize(layer, context)


@torch.no_grad()
def initialize_lora_eva_weights(
    model: nn.Module, batches: Iterable[Any], adapter_name: str = "default"
) -> dict[str, int]:
    """Set A to the principal directions of each layer's inputs, B to zero, and deal out the ranks.

    Named and used as PEFT's. The model is run in evaluation mode, without its adapters.

    Args:
        model: a wrapped model, on any weight format.
        batches: what the model takes: tensors, or mappings of keyword arguments. Padding
            (``attention_mask``) and masked labels are left out.

    Returns:
        The rank of each layer by path; a layer of rank 0 has lost the adapter.

    Raises:
        ConfigError: the adapter has another ``init_lora_weights``, or the batches are too few or
            too small for the ranks.
    """
    config = known_adapter(model, adapter_name)
    if str(config.init_lora_weights).lower() != "eva":
        raise ConfigError(
            f"adapter {adapter_name!r} was made with init_lora_weights="
            f"{config.init_lora_weights!r}: EVA is for init_lora_weights='eva'."
        )
    settings = EvaConfig.of(config)
    layers = {
        path: layer
        for path, layer in lora_layers(model)
        if adapter_name in layer.adapters and _is_linear(layer, adapter_name)
    }
    ranks = {path: layer.r[adapter_name] for path, layer in layers.items()}
    found = collect(model, batches, layers, ranks, settings)
    dealt = redistribute(
        {path: directions.shares for path, directions in found.items()}, ranks, settings.rho
    )
    for path, r in dealt.items():
        A = found[path].directions
        assert A is not None
        if settings.whiten:
            A = A / found[path].sigma[:, None].sqrt()
        with_rank(model, path, adapter_name, r, A[:r], settings.adjust_scaling_factors)
    _note_ranks(model, config, adapter_name, [path for path, r in dealt.items() if not r])
    return dealt


def _is_linear(layer: LoraLayer, adapter: str) -> bool:
    A = layer.adapter_tensors(adapter).get("lora_A.weight")
    return A is not None and A.ndim == 2 and A.shape[1] == layer.in_features


def _note_ranks(model: nn.Module, config: LoraConfig, adapter: str, without: list[str]) -> None:
    """Say in the adapter's config what ranks and alphas the layers have now."""
    layers = {p: layer for p, layer in lora_layers(model) if adapter in layer.adapters}
    config.rank_pattern = {
        f"^{escape(p)}": layer.r[adapter]
        for p, layer in layers.items()
        if layer.r[adapter] != config.r
    }
    config.alpha_pattern = {
        f"^{escape(p)}": layer.lora_alpha[adapter]
        for p, layer in layers.items()
        if layer.lora_alpha[adapter] != config.lora_alpha
    }
    if without:
        config.target_modules = sorted(layers)
