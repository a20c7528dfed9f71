"""The config of a file whose layers have other names in the model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from quantlora.config.lora_config import LoraConfig
from quantlora.config.patterns import as_pattern, by_pattern
from quantlora.config.picked_paths import TargetNames


def renamed_config(
    config: LoraConfig,
    layers: Mapping[str, str],
    modules: Mapping[str, str],
    paths: Collection[str],
) -> LoraConfig:
    """``config`` with paths in place of patterns, where it means modules of other names.

    Args:
        layers: today's path of each LoRA layer in the file, by the one there.
        modules: the same of every other module that has a tensor there.
        paths: all paths of the model.
    """
    config = replace(config, **_modules_in_full(config, {**layers, **modules}, paths))
    if config.target_parameters or all(old == new for old, new in layers.items()):
        return config
    return replace(config, **_patterns(config, layers), **_targets(config, layers, paths))


def _patterns(config: LoraConfig, layers: Mapping[str, str]) -> dict[str, Any]:
    ranks = {new: by_pattern(old, config.rank_pattern, config.r) for old, new in layers.items()}
    alphas = {
        new: by_pattern(old, config.alpha_pattern, config.lora_alpha) for old, new in layers.items()
    }
    (r, rank_pattern), (alpha, alpha_pattern) = as_pattern(ranks), as_pattern(alphas)
    values = {"r": r, "rank_pattern": rank_pattern}
    return values | {"lora_alpha": alpha, "alpha_pattern": alpha_pattern}


def _targets(
    config: LoraConfig, layers: Mapping[str, str], known_paths: Collection[str]
) -> dict[str, Any]:
    paths, names = set(layers.values()), TargetNames(config)
    if names.all_linear or set(filter(names.pick, known_paths)) == paths:
        return {}
    others = ("exclude_modules", "layers_to_transform", "layers_pattern")
    return {"target_modules": sorted(paths), **dict.fromkeys(others)}


def _modules_in_full(
    config: LoraConfig, moved: Mapping[str, str], paths: Collection[str]
) -> dict[str, Any]:
    """``modules_to_save`` and ``trainable_token_indices`` by names that the model has."""
    moved = {old: new for pair in moved.items() for old, new in _with_parents(*pair)}
    fields: dict[str, Any] = {}
    if config.modules_to_save:
        names = [new for old in config.modules_to_save for new in _renamed(old, moved, paths)]
        fields["modules_to_save"] = list(dict.fromkeys(names))
    if isinstance(tokens := config.trainable_token_indices, dict):
        fields["trainable_token_indices"] = {
            new: found for old, found in tokens.items() for new in _renamed(old, moved, paths)
        }
    return fields


def _renamed(name: str, moved: Mapping[str, str], paths: Collection[str]) -> list[str]:
    """``name`` where some path of the model ends in it, else the paths that it has become."""
    if any(_ends_in(path, name) for path in paths):
        return [name]
    return sorted({new for old, new in moved.items() if _ends_in(old, name)}) or [name]


def _ends_in(path: str, name: str) -> bool:
    return f".{path}".endswith(f".{name}")


def _with_parents(old: str, new: str) -> Iterable[tuple[str, str]]:
    """The pair, and those of the modules around it for as long as they have the same name."""
    while old and new:
        yield old, new
        (old, _, last), (new, _, same) = old.rpartition("."), new.rpartition(".")
        if last != same:
            return
