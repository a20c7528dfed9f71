"""Which layers get an adapter: ``target_modules`` and its companions, matched as in PEFT."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from quantlora.adapters.adapter_modules import own_modules
from quantlora.config.expressions import shortened
from quantlora.config.lora_config import LoraConfig
from quantlora.config.patterns import by_pattern, unmatched_patterns
from quantlora.config.picked_paths import TargetNames, is_all_linear
from quantlora.errors import AdapterError, TargetError
from quantlora.layers.trained_tokens import wanted_tokens
from quantlora.names import plain_path
from quantlora.suggestions import near
from quantlora.wrapping.all_linear import looks_linear, output_heads, some
from quantlora.wrapping.attention_targets import attention_of, both_layers, check_attention
from quantlora.wrapping.parameter_targets import check_reachable, parameter_targets_by_path
from quantlora.wrapping.target import Target
from quantlora.wrapping.ties import tied_tokens, ties_of, two_ways

#: For so many names that match nothing, near ones are looked for.
_HINTS = 12


def find_targets(model: nn.Module, config: LoraConfig, strict: bool = True) -> list[Target]:
    """The layers that ``config`` targets, in the model's order.

    Raises `TargetError` when the targets match nothing; where ``strict``, also for a rank or alpha
    pattern that does. In a file such a pattern has had no effect, and has none here.
    """
    modules = dict(own_modules(model))
    wanted = _wanted(model, config)
    paths = [path for path, module in modules.items() if path and wanted(path, module)]
    ties = ties_of(model) if config.trainable_token_indices or config.ensure_weight_tying else None
    tokens = wanted_tokens(config, modules, ties.source if ties else None)
    if ties is not None:
        tokens = tied_tokens(tokens, ties, config)
        paths = ties.joined(paths) if config.ensure_weight_tying else paths
    if both := [path for path in paths if path in tokens]:
        raise AdapterError(two_ways(both[0]))
    attentions = [path for path in paths if attention_of(modules[path]) is not None]
    halves = [one for path in attentions for one in _halves(path, modules[path], config)]
    inner = [one.path for one in halves]  # a name may pick the attention and its layer
    check_reachable(modules, inner, wanted)
    parameters = parameter_targets_by_path(modules, config, [*paths, *inner, *tokens])
    if not paths and not parameters and not tokens:
        raise TargetError(_nothing(config, modules))
    keys = [f"{path}.{name}" for path, names in parameters.items() for name in names]
    plain = [plain_path(path) for path in (*paths, *keys)]
    for name in ("rank_pattern", "alpha_pattern") if strict else ():
        _check_patterns(name, getattr(config, name), plain)
    return [
        *(_target(path, modules[path], config) for path in paths if path not in inner),
        *halves,
        *(
            _parameter_target(path, modules[path], names, config)
            for path, names in parameters.items()
        ),
        *(Target(p, modules[p], len(t), len(t), tokens=t) for p, t in tokens.items()),
    ]


def _wanted(model: nn.Module, config: LoraConfig) -> Callable[[str, nn.Module], bool]:
    """Whether a module at a path is a target as a layer."""
    names = TargetNames(config)
    if not is_all_linear(config):
        return lambda path, module: names.pick(plain_path(path))
    heads = output_heads(model, config)
    return lambda path, module: (
        names.pick(plain_path(path)) and module not in heads and looks_linear(module)
    )


def _target(path: str, layer: nn.Module, config: LoraConfig) -> Target:
    name = plain_path(path)
    r = by_pattern(name, config.rank_pattern, config.r)
    return Target(path, layer, r, by_pattern(name, config.alpha_pattern, config.lora_alpha))


def _halves(path: str, attention: nn.Module, config: LoraConfig) -> list[Target]:
    check_attention(path, attention, config)
    return both_layers(_target(path, attention, config))


def _parameter_target(path: str, module: nn.Module, names: list[str], config: LoraConfig) -> Target:
    """With rank and alpha of the first; `LoraParameters` looks for those of the others."""
    first = _target(f"{path}.{names[0]}", module, config)
    return Target(path, module, first.r, first.lora_alpha, tuple(names))


def _check_patterns(name: str, patterns: Mapping[str, Any], paths: list[str]) -> None:
    for pattern in unmatched_patterns(patterns, paths):
        close = near(pattern, paths)
        hint = f" Near names: {', '.join(close)}." if close else f" Targets: {some(paths)}."
        raise TargetError(f"{name} {pattern!r} matches none of the targeted layers.{hint}")


def _nothing(config: LoraConfig, modules: Mapping[str, nn.Module]) -> str:
    linear = [path for path, module in modules.items() if path and looks_linear(module)]
    targets = config.target_modules
    asked = [targets] if isinstance(targets, str) else targets or []
    close = dict.fromkeys(name for one in asked[:_HINTS] for name in near(one, linear))
    hint = f" Near names: {', '.join(close)}." if close else ""
    return (
        f"target_modules={shortened(targets)} (exclude_modules="
        f"{shortened(config.exclude_modules)}) matches no layer "
        f"of this model.{hint} Its linear layers are named: "
        f"{some(dict.fromkeys(path.rsplit('.', 1)[-1] for path in linear))}. "
        f'Use target_modules="all-linear" for all of them.'
    )
