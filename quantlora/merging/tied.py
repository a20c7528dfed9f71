"""Tied weights: input and output embeddings that are one matrix, until one of them is merged."""

from __future__ import annotations

from typing import Any

from torch import nn

from quantlora.adapters.adapter_modules import embedding_ends
from quantlora.errors import warn


def untie(config: Any) -> None:
    """Let ``config`` say that the embeddings are apart, with a warning where it said otherwise."""
    parts = [part for part in {id(c): c for c in (config, _text(config))}.values() if _ties(part)]
    for part in parts:
        part.tie_word_embeddings = False
    if parts:
        warn(
            "an adapter is merged into one of two tied weights (input and output embeddings), so "
            "they are one no more: both are kept, and the config says tie_word_embeddings=False.",
        )


def untie_merged(model: nn.Module) -> None:
    """`untie` for a model whose layers are merged, where its embeddings are two tensors now."""
    config = getattr(model, "config", None)
    if not (_ties(config) or _ties(_text(config))):
        return
    weights = [getattr(end, "weight", None) for end in embedding_ends(model)]
    if all(weight is not None for weight in weights) and weights[0] is not weights[1]:
        untie(config)
        _copy_shared(model)


def _copy_shared(model: nn.Module) -> None:
    """Give each layer its own copy of a weight that it shared.

    With ``tie_word_embeddings=False`` nothing ties BART's embeddings of encoder and decoder to
    each other either, and of one tensor with several names only the first is saved.
    """
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) in seen:
                copied = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
                module._parameters[name] = copied
            seen.add(id(parameter))


def _ties(config: Any) -> bool:
    return bool(getattr(config, "tie_word_embeddings", False))


def _text(config: Any) -> Any:
    return config.get_text_config() if hasattr(config, "get_text_config") else config
