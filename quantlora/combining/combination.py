"""A new adapter from a weighted sum of others, by PEFT's names of the ways to do it.

Exact are ``cat`` and, with rank enough, ``svd``: ``ΔW = Σ w · ΔWᵢ``. The ways of
`task_arithmetic` combine A and B apart, as PEFT does: cheap, but ``(Σ aAᵢ)(Σ bBᵢ)`` is not the
sum of the products. Their ``..._svd`` forms combine the ΔWᵢ themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.checkpoint.keys import file_key
from quantlora.checkpoint.load import put_on
from quantlora.checkpoint.target_names import minimal_names
from quantlora.combining.combine_layer import CAT, COMBINATION_TYPES, SVD, Recipe, combine_layer
from quantlora.combining.task_arithmetic import MAJORITIES
from quantlora.config.lora_config import LoraConfig
from quantlora.config.patterns import as_pattern
from quantlora.errors import AdapterError, ConfigError
from quantlora.formats.autocast import without_autocast
from quantlora.formats.finite import not_finite
from quantlora.layers.parameters import LoraParameters
from quantlora.names import check_name, plain_path
from quantlora.suggestions import unknown


@torch.no_grad()
@without_autocast
def add_weighted_adapter(
    model: nn.Module,
    adapters: Sequence[str],
    weights: Sequence[float],
    adapter_name: str,
    combination_type: str = SVD,
    *,
    svd_rank: int | None = None,
    density: float | None = None,
    majority_sign_method: str = "total",
) -> None:
    """Add ``adapter_name``, the weighted combination of ``adapters``, and make it the active one.

    Args:
        combination_type: one of `COMBINATION_TYPES`.
        svd_rank: rank of the result of an ``svd`` type; default: the largest of the parts.
        density: share of the elements that the pruning types keep, in (0, 1].
        majority_sign_method: ``"total"`` or ``"frequency"``, for the ``ties`` types.

    Raises:
        AdapterError: an adapter is unknown, the name is taken, or the parts cannot be combined in
            this way: different ranks or DoRA without an ``svd``, modules trained in full.
        ConfigError: ``combination_type`` or a setting is unknown or out of range.
    """
    _check_numbers(adapters, weights, combination_type, density, majority_sign_method)
    adapted = AdaptedModel.of(model)
    _check_adapters(adapted, adapters, adapter_name, combination_type)
    configs, layers = [adapted.state.known(name) for name in adapters], adapted.lora_layers
    recipe = Recipe(
        weights=dict(zip(adapters, map(float, weights), strict=True)),
        kind=combination_type,
        svd_rank=svd_rank
        or max(max(config.r, *config.rank_pattern.values(), 0) for config in configs),
        density=density or 1.0,
        majority=majority_sign_method,
        low_rank=all(config.variant == "lora" for config in configs),
        lora_bias=any(config.lora_bias for config in configs),
    )
    for name in adapters:  # no decomposition takes NaN, and pruning may drop it
        parts = {
            file_key(plain_path(path), key): tensor
            for path, layer in layers.items()
            if name in layer.adapters
            for key, tensor in layer.adapter_tensors(name).items()
        }
        _check_finite(parts, adapter_name, adapters)
    found = {plain_path(p): combine_layer(layer, recipe) for p, layer in layers.items()}
    combined = {path: tensors for path, tensors in found.items() if tensors}
    ranks = {path: len(next(iter(tensors.values()))) for path, tensors in combined.items()}
    config = _config(adapted, configs[0], ranks, recipe.lora_bias)
    files = {
        file_key(path, name): tensor
        for path, tensors in combined.items()
        for name, tensor in tensors.items()
    }
    _check_finite(files, adapter_name, adapters)
    put_on(adapted, config, files, adapter_name, f"the combination {adapter_name!r}")


def _check_finite(tensors: Mapping[str, Tensor], adapter: str, parts: Sequence[str]) -> None:
    if bad := not_finite(tensors):
        raise AdapterError(
            f"the combination {adapter!r} would hold NaN or infinite values ({bad[0]} first): "
            f"one of {', '.join(parts)} has diverged in training, or the weights are too large."
        )


def _check_numbers(
    adapters: Sequence[str],
    weights: Sequence[float],
    kind: str,
    density: float | None,
    majority: str,
) -> None:
    if not adapters or len(adapters) != len(weights) or len(set(adapters)) != len(adapters):
        raise ConfigError(
            f"give one weight for each adapter, and each adapter once: got {list(adapters)} with "
            f"{list(weights)}."
        )
    if kind not in COMBINATION_TYPES:
        raise ConfigError(unknown("combination_type", kind, COMBINATION_TYPES))
    if majority not in MAJORITIES:
        raise ConfigError(unknown("majority_sign_method", majority, MAJORITIES))
    if kind not in ("linear", CAT, SVD) and (density is None or not 0 < density <= 1):
        raise ConfigError(f"combination_type {kind!r} needs a density in (0, 1], got {density!r}.")


def _check_adapters(adapted: AdaptedModel, parts: Sequence[str], adapter: str, kind: str) -> None:
    check_name(adapter)
    configs = {name: adapted.state.known(name) for name in parts}
    adapted.state.check_free(adapter)
    for name, config in configs.items():
        others = config.modules_to_save or config.trainable_token_indices
        if others or config.bias != "none" or _has_parameters(adapted, name):
            raise AdapterError(
                f"adapter {name!r} trains more than LoRA layers (modules_to_save, bias, "
                f"target_parameters or a whole attention), and these cannot be combined."
            )
        if config.variant != "lora" and not kind.endswith(SVD):
            raise AdapterError(
                f"adapter {name!r} is of variant {config.variant!r}, whose update is not B·A "
                f"alone: use combination_type='svd', which takes the update itself."
            )


def _has_parameters(adapted: AdaptedModel, adapter: str) -> bool:
    layers = [layer for layer in adapted.lora_layers.values() if adapter in layer.adapters]
    return any(isinstance(layer, LoraParameters) for layer in layers)


def _config(
    adapted: AdaptedModel, first: LoraConfig, ranks: dict[str, int], lora_bias: bool
) -> LoraConfig:
    """Scale 1 everywhere; a rank that is not the usual one is told by its layer's path."""
    usual, others = as_pattern(ranks)
    rest = (path for path in map(plain_path, adapted.modules) if path not in ranks)
    return LoraConfig(
        r=usual,
        lora_alpha=usual,
        rank_pattern=others,
        alpha_pattern={path: float(rank) for path, rank in others.items()},
        target_modules=minimal_names(ranks, rest),
        lora_bias=lora_bias,
        task_type=first.task_type,
        base_model_name_or_path=first.base_model_name_or_path,
        revision=first.revision,
    )
