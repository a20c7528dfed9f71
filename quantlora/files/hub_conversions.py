"""Transformers' table from the names in files on the hub to those in memory, and backwards."""

from __future__ import annotations

from typing import Any

from torch import nn

#: The parameters of Transformers 5 that hold the matrices of all experts.
_STACKS = ("gate_up_proj", "up_proj", "down_proj")


def reversed_conversions(model: Any) -> tuple[list[Any], list[Any]] | None:
    """Converters and renamings from the model's names to the files'; None where there are none."""
    try:
        from transformers.core_model_loading import (
            WeightConverter,
            apply_converters,  # noqa: F401  # the first version of the loader has none
        )
    except ImportError:  # Transformers 4 has the hub's names in memory
        return None
    turned = [each.reverse_transform() for each in reversed(conversions(model))]
    converters = [each for each in turned if isinstance(each, WeightConverter)]
    return converters, [each for each in turned if not isinstance(each, WeightConverter)]


def conversions(model: Any) -> list[Any]:
    """Those that reading this model's checkpoint takes; empty before Transformers 5."""
    try:
        from transformers import conversion_mapping
        from transformers.core_model_loading import PrefixChange
    except ImportError:
        return []
    known = getattr(model, "_weight_conversions", None)  # empty: from a packed checkpoint
    if not known:  # of no checkpoint with the hub's names, so no prefix is known to have been there
        every = conversion_mapping.get_model_conversion_mapping(model, add_legacy=False)
        known = [each for each in every if not isinstance(each, PrefixChange)]
    return [each for each in known if not _reads_packed(each)]


def expert_projections(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """By stack the layers that one of its matrices is, one below the other, in files by expert.

    ``{"gate_up_proj": ("w1", "w3"), "down_proj": ("w2",)}``; empty where files hold stacks too.
    """
    found = {}
    for each in conversions(model) if hasattr(model, "config") else ():
        patterns, targets = each.source_patterns, each.target_patterns
        stack = targets[0].rpartition(".")[2]
        if stack in _STACKS and all(".experts.*." in pattern for pattern in patterns):
            found[stack] = tuple(p.removesuffix(".weight").rpartition(".")[2] for p in patterns)
    return found


def _reads_packed(conversion: Any) -> bool:
    """Whether it is a quantizer's, which puts packed tensors together."""
    return any(hasattr(step, "hf_quantizer") for step in getattr(conversion, "operations", ()))
