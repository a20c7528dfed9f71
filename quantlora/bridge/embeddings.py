"""Transformers' methods that replace or tie embeddings, on a model whose embeddings are adapted."""

from __future__ import annotations

from typing import Any

from quantlora.adapters.adapter_modules import adapter_modules, embedding_ends
from quantlora.errors import AdapterError


def resize_token_embeddings(model: Any, *args: Any, **kwargs: Any) -> Any:
    """Transformers' own; adapters on an embedding or the head are for a vocabulary of one size.

    Raises:
        AdapterError: there are such adapters, and the size would change. Nothing is changed.
    """
    path, rows = _adapted_embedding(model)
    if not path:
        return type(model).resize_token_embeddings(model, *args, **kwargs)
    size = args[0] if args else kwargs.get("new_num_tokens")
    if size not in (None, rows) or kwargs.get("pad_to_multiple_of"):
        raise AdapterError(
            f"{path} has adapters for a vocabulary of {rows}: call resize_token_embeddings before "
            f"wrap or load_adapter, or after quantlora.merge_and_unload."
        )
    return model.get_input_embeddings()


def tie_weights(model: Any, *args: Any, **kwargs: Any) -> Any:
    """Transformers' own; adapted embeddings are tied already, or not on purpose."""
    if _adapted_embedding(model)[0]:
        return None
    return type(model).tie_weights(model, *args, **kwargs)


def _adapted_embedding(model: Any) -> tuple[str, int]:
    """The path of an embedding or head with adapters, and its rows; ``("", 0)`` for none."""
    ends = {id(end) for end in embedding_ends(model) if end is not None}
    found: list[tuple[str, Any]] = [
        (path, module) for path, module in adapter_modules(model) if id(module) in ends
    ]
    return next(((path, len(module.weight)) for path, module in found), ("", 0))
