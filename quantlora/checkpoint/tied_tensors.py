"""Tensors of a file for layers that have another one's weight: the same adapter a second time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.checkpoint.keys import PREFIX
from quantlora.config.lora_config import LoraConfig
from quantlora.errors import warn
from quantlora.names import plain_path
from quantlora.wrapping.ties import same_patterns, ties_of

_ROWS = "token_adapter.trainable_tokens_delta"
_MAGNITUDE = "lora_magnitude_vector"  # one number for each output: the two layers' are different
#: By the name of a tensor of the layer that follows: that of the one with the weight.
_SAME = {
    "lora_A.weight": "lora_embedding_B",  # transposed
    "lora_B.weight": "lora_embedding_A",
    "lora_embedding_A": "lora_embedding_A",
    "lora_embedding_B": "lora_embedding_B",
    "weight": "weight",
    "modules_to_save.weight": "weight",
    _ROWS: _ROWS,
}


def without_repetitions(
    adapted: AdaptedModel, config: LoraConfig, tensors: Mapping[str, Tensor]
) -> tuple[LoraConfig, Mapping[str, Tensor]]:
    """The tensors without those that tied layers repeat.

    PEFT begins with one pair of factors for both, but trains two where the model is in half
    precision, and with DoRA gives each a magnitude: then they are two adapters, and the config that
    is returned says so.
    """
    if not (config.ensure_weight_tying or config.trainable_token_indices):
        return config, tensors
    ties = ties_of(adapted)
    repeated: dict[str, str] = {}
    apart = set()
    source = plain_path(ties.source or "")
    for path in map(plain_path, ties.others):
        for name, tied in _SAME.items():
            first, two = f"{PREFIX}{path}.{name}", f"{PREFIX}{source}.{tied}"
            if first in tensors and two in tensors:
                repeated[first] = two
                turned = "lora_" in name and tied != name
                if not _equal(tensors[first], tensors[two], turned):
                    apart.add(path)
        if not same_patterns(source, path, config) or f"{PREFIX}{path}.{_MAGNITUDE}" in tensors:
            apart.add(path)
    if apart and config.ensure_weight_tying:
        return _two_adapters(config, sorted(apart), source), tensors
    return config, tensors if apart else {k: t for k, t in tensors.items() if k not in repeated}


def _equal(first: Tensor, two: Tensor, turned: bool) -> bool:
    return torch.equal(first, two.t() if turned else two)


def _two_adapters(config: LoraConfig, paths: list[str], source: str) -> LoraConfig:
    warn(
        f"ensure_weight_tying is set, but the file has another adapter for {', '.join(paths)} than "
        f"for {source}, whose weight it has: each is loaded as it is, and trained on by itself."
    )
    if config.modules_to_save:
        saved = [*config.modules_to_save, *paths]
        return replace(config, ensure_weight_tying=False, modules_to_save=saved)
    targets = config.target_modules
    if isinstance(targets, str):
        targets = f"(?:{targets})|" + "|".join(map(re.escape, paths))
    both = [*targets, *paths] if isinstance(targets, list) else targets
    return replace(config, ensure_weight_tying=False, target_modules=both)
