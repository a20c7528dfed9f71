"""An adapter on stacks of experts as adapters on their single layers, by the names of the hub.

vLLM, SGLang and Transformers 4 have a mixture's experts as layers, ``experts.0.w1`` or
``experts.0.gate_proj``, and take adapters on them by these names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

from torch import Tensor, nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.checkpoint.expert_parts import ExpertParts
from quantlora.checkpoint.keys import PREFIX, file_key, file_path, split_key
from quantlora.checkpoint.target_names import minimal_names
from quantlora.config.lora_config import LoraConfig
from quantlora.config.patterns import as_pattern, by_pattern
from quantlora.errors import AdapterFileError
from quantlora.files.hub_conversions import expert_projections, reversed_conversions
from quantlora.layers.experts import LoraExperts
from quantlora.layers.parameters import LoraParameters

#: How adapters on experts are written.
STACKED, PER_EXPERT = "stacked", "per_expert"

#: Ranks, alphas by path.
_Values = tuple[dict[str, int], dict[str, float]]


def split_experts(
    adapted: AdaptedModel, config: LoraConfig, tensors: Mapping[str, Tensor], adapter: str
) -> tuple[LoraConfig, dict[str, Tensor]]:
    """The same update, expert by expert.

    Args:
        config, tensors: as they would go to the file, A and B of stacks side by side.

    Raises:
        AdapterFileError: checkpoints of this architecture have stacks too, or the adapter is on
            parameters that are no layer's weight in them.
    """
    layers = {path: layer for path, layer in adapted.lora_layers.items() if adapter in layer.r}
    projections, renamed = expert_projections(adapted.model), _renaming(adapted)
    new = dict(tensors)
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for path, layer in layers.items():
        where = file_path(adapted.model, path, adapter)
        if isinstance(layer, LoraExperts):
            _split(layer, adapter, where, projections, config, new, (ranks, alphas))
            continue
        if isinstance(layer, LoraParameters) and _parameters(layer, adapter) != ["weight"]:
            raise AdapterFileError(
                f"{path}: adapters on parameters that are no layer's weight in any checkpoint "
                f'cannot be written one by one: save it without experts="per_expert".'
            )
        name = f"{where}.weight" if isinstance(layer, LoraParameters) else where
        ranks[where] = by_pattern(name, config.rank_pattern, config.r)
        alphas[where] = by_pattern(name, config.alpha_pattern, config.lora_alpha)
    names = {path: renamed(path) for path in ranks}
    ranks = {names[path]: rank for path, rank in ranks.items()}
    alphas = {names[path]: alpha for path, alpha in alphas.items()}
    others = {renamed(path) for path in adapted.modules if path} - ranks.keys()
    written = _config(config, ranks, alphas, others)
    return written, {_key(k, renamed): t for k, t in new.items()}


def has_experts(adapted: AdaptedModel, adapter: str) -> bool:
    """Whether ``adapter`` is on fused experts."""
    layers = adapted.lora_layers.values()
    return any(isinstance(layer, LoraExperts) and adapter in layer.adapters for layer in layers)


def _parameters(layer: LoraParameters, adapter: str) -> list[str]:
    return [*cast(nn.ModuleDict, layer.lora_A[adapter])]


def _split(
    layer: LoraExperts,
    adapter: str,
    path: str,
    projections: Mapping[str, tuple[str, ...]],
    config: LoraConfig,
    tensors: dict[str, Tensor],
    values: _Values,
) -> None:
    """Put the parts of one module of experts in the place of its tensors; note their values."""
    names = _parameters(layer, adapter)
    if missing := [name for name in names if name not in projections]:
        raise AdapterFileError(
            f"{path}: checkpoints of this architecture hold {missing[0]} of all experts in one "
            f'tensor, so there are no names for single ones: save it without experts="per_expert".'
        )
    for depth, name in enumerate(reversed(names)):
        keys = [file_key(path, f"{'base_layer.' * depth}lora_{side}.weight") for side in "AB"]
        parts = ExpertParts(projections[name], layer.shapes[name])
        A, B = (tensors.pop(key) for key in keys)
        where = f"{path}.{name}"
        alpha = by_pattern(where, config.alpha_pattern, config.lora_alpha)
        scale = config.scaling(len(A) // parts.shape[0], alpha)
        parts.divide(A, B, scale)
        for (expert, projection), (first, second, _) in parts.parts.items():
            single, r = f"{path}.{expert}.{projection}", len(first)
            values[0][single] = r
            values[1][single] = scale * (math.sqrt(r) if config.use_rslora else r)
            tensors[file_key(single, "lora_A.weight")] = first
            tensors[file_key(single, "lora_B.weight")] = second


def _config(
    config: LoraConfig, ranks: dict[str, int], alphas: dict[str, float], others: set[str]
) -> LoraConfig:
    """With names that pick the paths of ``ranks`` and none of ``others``."""
    (r, rank_pattern), (alpha, alpha_pattern) = as_pattern(ranks), as_pattern(alphas)
    fields: dict[str, Any] = {
        "target_modules": minimal_names(ranks, others),
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
        "target_parameters": None,
        **dict.fromkeys(("exclude_modules", "layers_to_transform", "layers_pattern")),
    }
    return replace(config, r=r, lora_alpha=alpha, **fields)


def _renaming(adapted: AdaptedModel) -> Callable[[str], str]:
    """From the path of a layer in the model to that in files."""
    found = reversed_conversions(adapted.model)
    if found is None:
        return lambda path: path
    from transformers.core_model_loading import apply_renamings

    def renamed(path: str) -> str:
        name: str = apply_renamings(f"{path}.weight", found[1])
        return name.removesuffix(".weight")

    return renamed


def _key(key: str, renamed: Callable[[str], str]) -> str:
    path, name = split_key(key)
    if path:
        return file_key(renamed(path), name)
    owner, _, last = name.rpartition(".")
    return f"{PREFIX}{renamed(owner)}.{last}" if owner else key
