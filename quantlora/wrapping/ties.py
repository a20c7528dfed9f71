"""Layers that share the weight of the input embeddings, and follow the adapters there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.adapters.adapter_modules import embedding_ends, plain_module
from quantlora.adapters.modules_to_save import ModulesToSaveWrapper
from quantlora.adapters.state import AdapterState
from quantlora.config.lora_config import LoraConfig
from quantlora.config.patterns import by_pattern
from quantlora.errors import AdapterError, ConfigError, warn
from quantlora.formats.around import called_otherwise
from quantlora.layers.adapter_module import AdapterModule
from quantlora.layers.dora import DoraEmbedding
from quantlora.layers.embedding import LoraEmbedding
from quantlora.layers.hooks import move_hooks
from quantlora.layers.tied import TiedLayer
from quantlora.layers.trained_tokens import TrainedTokens


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
    first = found.get(ties.source or "")
    others = {path: found[path] for path in ties.others if path in found}
    differ = {path: tokens for path, tokens in others.items() if tokens != first}
    if first is None or (differ and not config.ensure_weight_tying):
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


def tie_layers(adapted: AdaptedModel, config: LoraConfig, adapter: str) -> None:
    """Let what is tied to the input embeddings follow their adapters; within a `Transaction`."""
    model, ties = adapted.model, ties_of(adapted)
    source = model.get_submodule(ties.source) if ties.source else None
    has = isinstance(source, AdapterModule) and adapter in source.adapters
    if config.ensure_weight_tying and not (has and ties.others):
        warn(
            "ensure_weight_tying is set, and has no effect: the adapter trains no layer whose "
            "weight is shared with the input embeddings."
        )
    if not has or not isinstance(source, AdapterModule):
        return
    follow = _follows(source, config)
    for path in ties.others:
        module = model.get_submodule(path)
        if isinstance(module, TrainedTokens) and not config.ensure_weight_tying:
            continue  # it has been given tokens of its own
        if follow or isinstance(module, TiedLayer):
            _check_following(adapted.state, source, adapter, follow, path, module)
            _check_same_patterns(source.path, path, config)
        if follow and not isinstance(module, TiedLayer):
            tied = TiedLayer(module, source)
            move_hooks(module, tied)
            model.set_submodule(path, tied)
        elif isinstance(module, TiedLayer) and not follow:
            move_hooks(module, module.base_layer)
            model.set_submodule(path, module.base_layer)


def _follows(source: nn.Module, config: LoraConfig) -> bool:
    return config.ensure_weight_tying or isinstance(source, TrainedTokens)


def _check_following(
    state: AdapterState,
    source: AdapterModule,
    adapter: str,
    follow: bool,
    path: str,
    module: nn.Module,
) -> None:
    others = [name for name in source.adapters if name != adapter]
    if strange := [name for name in others if _follows(source, state.configs[name]) != follow]:
        raise AdapterError(
            f"{path} has the weight of {source.path}, and ensure_weight_tying is not the same for "
            f"{adapter} and {', '.join(strange)}: set it for both, or use two models."
        )
    if isinstance(module, AdapterModule):
        raise AdapterError(
            f"{path} has the weight of {source.path} and adapters of its own, so it cannot follow "
            f"those there: leave it out of target_modules and modules_to_save."
        )
    new = follow and not isinstance(module, TiedLayer)
    if new and isinstance(source, DoraEmbedding):
        raise AdapterError(
            f"{path} has the weight of {source.path}, but DoRA has a magnitude for each output, "
            f"and they have other outputs: name both in target_modules, without "
            f"ensure_weight_tying, for an adapter each."
        )
    plain = plain_module(source)[0]
    scales = [getattr(embedding, "embed_scale", None) for embedding in (plain, module)]
    same = type(module) is type(plain) and scales[0] == scales[1]
    usual = type(module).forward is nn.Linear.forward and not called_otherwise(module)
    fits = type(source) in (LoraEmbedding, TrainedTokens, ModulesToSaveWrapper)
    if new and not (fits and (same if isinstance(module, nn.Embedding) else usual)):
        raise AdapterError(
            f"{path} has the weight of {source.path}, but a {type(module).__name__} cannot follow "
            f"the adapters of this {type(source).__name__}: adapt it without ensure_weight_tying."
        )


def same_patterns(source: str, path: str, config: LoraConfig) -> bool:
    """Whether the patterns give two tied layers one rank and one alpha."""
    patterns = (config.rank_pattern, config.alpha_pattern)
    return all(by_pattern(source, p, None) == by_pattern(path, p, None) for p in patterns)


def _check_same_patterns(source: str, path: str, config: LoraConfig) -> None:
    if not same_patterns(source, path, config):
        raise ConfigError(
            f"{path} follows {source}, whose weight it has, so rank_pattern and alpha_pattern must "
            f"give both the same."
        )
