"""Layers that share the weight of the input embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.adapters.adapter_modules import embedding_ends, plain_module
from quantlora.config.lora_config import LoraConfig
from quantlora.errors import ConfigError


@dataclass(frozen=True)
class Ties:
    """The path of the input embeddings, and those of the modules with the same weight."""

    source: str | None
    others: tuple[str, ...] = ()

    def joined(self, paths: Iterable[str]) -> list[str]:
        """``paths``, with the source for each path that is tied to it."""
        given = list(paths)
        if self.source is None or not {*given} & {self.source, *self.others}:
            return given
        return list(dict.fromkeys(self.source if p in self.others else p for p in given))


def ties_of(adapted: AdaptedModel) -> Ties:
    """Found by the identity of the parameter: what is one matrix is trained as one."""
    end = embedding_ends(adapted.model)[0]
    if end is None:
        return Ties(None)
    weight = plain_module(end)[0]._parameters.get("weight")
    paths = adapted.modules
    source = next((path for path, module in paths.items() if path and module is end), None)
    return Ties(
        source,
        tuple(
            path
            for path, module in paths.items()
            if path
            and module is not end
            and weight is not None
            and plain_module(module)[0]._parameters.get("weight") is weight
        ),
    )


def tied_tokens(
    found: Mapping[str, tuple[int, ...]], ties: Ties, config: LoraConfig
) -> dict[str, tuple[int, ...]]:
    """``found`` without the layers that follow the input embeddings, which have the same tokens.

    Raises `ConfigError` where they have others and ``ensure_weight_tying`` is asked for.
    """
    own = found.get(ties.source or "")
    others = {path: found[path] for path in ties.others if path in found}
    differ = {path: tokens for path, tokens in others.items() if tokens != own}
    if own is None or (differ and not config.ensure_weight_tying):
        return dict(found)
    if differ:
        raise ConfigError(
            f"trainable_token_indices names other tokens for {next(iter(differ))} than for "
            f"{ties.source}, whose weight it has, and ensure_weight_tying is set: name the same."
        )
    return {path: tokens for path, tokens in found.items() if path not in others}


def two_ways(path: str) -> str:
    """What to say of a layer of which some rows and the whole are to be trained."""
    return (
        f"{path}: trainable_token_indices trains some rows of this layer, and an adapter of "
        f"another kind the whole: leave it out of target_modules and modules_to_save."
    )
