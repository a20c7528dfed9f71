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


def _ties(config: Any) -> bool:
    return bool(getattr(config, "tie_word_embeddings", False))


def _text(config: Any) -> Any:
    return config.get_text_config() if hasattr(config, "get_text_config") else config
