"""Embeddings that a model keeps only to tie others to: an adapter there would have no effect.

Transformers 5's encoder-decoders (T5, BART) have ``shared``, which no forward calls: encoder and
decoder call ``embed_tokens`` of their own, with the same weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import CodeType

from torch import nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.adapters.adapter_modules import plain_module
from quantlora.adapters.read_by_model import method_codes
from quantlora.config.lora_config import LoraConfig

#: Methods with such words in their names do not compute.
_NO_FORWARD = ("init", "tie", "embeddings", "resize", "load", "save")


def never_called(adapted: AdaptedModel, config: LoraConfig, paths: Iterable[str]) -> str:
    """What to say of a target at ``paths`` that no forward calls; empty where all are called."""
    if config.ensure_weight_tying:
        return ""
    for path in paths:
        others = _same_weight(adapted.modules, path)
        if others and not _is_used(adapted.modules, path):
            return (
                f"{path}: the model never calls it, but {', '.join(others)}, which have its "
                f"weight, so an adapter there has no effect. Name {_names(others)}, or set "
                f"ensure_weight_tying=True for one adapter of all of them."
            )
    return ""


def _same_weight(modules: Mapping[str, nn.Module], path: str) -> list[str]:
    """The paths of other embeddings with the weight of the one at ``path``."""
    if path not in modules:
        return []  # inside one of ours, an attention
    target = plain_module(modules[path])[0]
    weight = target._parameters.get("weight")
    if not isinstance(target, nn.Embedding) or weight is None:
        return []
    plain = {other: plain_module(module)[0] for other, module in modules.items()}
    return [
        other
        for other, embedding in plain.items()
        if isinstance(embedding, nn.Embedding) and embedding is not target
        if embedding._parameters.get("weight") is weight
    ]


def _is_used(modules: Mapping[str, nn.Module], path: str) -> bool:
    """Whether the code of a module around ``path`` takes it, under the name that it has there."""
    name, above = path.split(".")[-1], path
    while above:
        above = above.rpartition(".")[0]
        if name in _names_taken(type(modules[above])):
            return True
    return False


def _names_taken(kind: type[nn.Module]) -> set[str]:
    return {name for code in method_codes(kind, _NO_FORWARD) for name in _taken_in(code)}


def _taken_in(code: CodeType) -> set[str]:
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return {*code.co_names, *(name for function in inner for name in _taken_in(function))}


def _names(paths: Iterable[str]) -> str:
    return ", ".join(sorted({path.rsplit(".", 1)[-1] for path in paths}))
