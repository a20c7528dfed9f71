"""Which layers get an adapter: ``target_modules`` and its companions, matched as in PEFT."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property

from torch import nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.config.expressions import shortened
from quantlora.config.lora_config import LoraConfig
from quantlora.config.patterns import unmatched_patterns
from quantlora.config.picked_paths import TargetNames
from quantlora.errors import AdapterError, TargetError
from quantlora.layers.experts import experts_layout
from quantlora.layers.trained_tokens import wanted_tokens
from quantlora.names import plain_path
from quantlora.suggestions import near, some
from quantlora.wrapping.all_linear import looks_linear, output_heads
from quantlora.wrapping.attention_targets import attention_targets
from quantlora.wrapping.parameter_targets import check_reachable, parameter_targets
from quantlora.wrapping.target import Target
from quantlora.wrapping.ties import tied_tokens, ties_of, two_ways

#: For so many names that match nothing, near ones are looked for.
_HINTS = 12


class Search:
    """What ``config`` picks in a model, looked for once.

    Args:
        names: what its names pick.
        ties: the layers that have the weight of the input embeddings.
    """

    def __init__(self, adapted: AdaptedModel, config: LoraConfig) -> None:
        self.adapted, self.config, self.modules = adapted, config, adapted.modules
        self.names, self.ties = TargetNames(config), ties_of(adapted)
        self.heads = output_heads(adapted.model, config) if self.names.all_linear else set()

    @cached_property
    def picked(self) -> dict[str, nn.Module]:
        """The modules whose path the names pick; "all-linear" picks every path."""
        pick = self.names.pick
        return {path: m for path, m in self.modules.items() if pick(plain_path(path))}

    @cached_property
    def paths(self) -> list[str]:
        """The targets of ``target_modules``: layers, attentions."""
        paths = [path for path, module in self.picked.items() if path and self._suits(module)]
        return self.ties.joined(paths) if self.config.ensure_weight_tying else paths

    def wants(self, path: str, module: nn.Module) -> bool:
        """Whether a module at a path is a target as a layer."""
        return self.names.pick(plain_path(path)) and self._suits(module)

    def _suits(self, module: nn.Module) -> bool:
        return not self.names.all_linear or (module not in self.heads and looks_linear(module))


def find_targets(search: Search, strict: bool = True) -> list[Target]:
    """What is targeted: layers, attentions, parameters, tokens, each in the model's order.

    Raises `TargetError` when the targets match nothing; where ``strict``, also for a rank or alpha
    pattern that does. In a file such a pattern has had no effect, and has none here.
    """
    config, tokens = search.config, _token_targets(search)
    attentions = attention_targets(search.paths, search.modules, config)
    inner = {target.path for target in attentions}  # a name may pick the attention and its layer
    layers = [Target.of(p, search.modules[p], config) for p in search.paths if p not in inner]
    _check_layers(layers)
    check_reachable(search.modules, inner, search.wants)
    whole = [target.path for target in (*layers, *attentions, *tokens)]
    parameters = parameter_targets(search.modules, config, whole, strict)
    targets = [*layers, *attentions, *parameters, *tokens]
    if not targets:
        raise TargetError(_nothing(config, search.modules))
    if strict:
        _check_patterns(config, [*search.paths, *_keys(parameters)])
    return targets


def _check_layers(layers: Iterable[Target]) -> None:
    for target in layers:
        if (layout := experts_layout(target.layer)) is not None:
            end = plain_path(target.path).rpartition(".")[2]
            raise TargetError(
                f"{target.path} holds fused experts, which are parameters and no layer: name them "
                f"by target_parameters={[f'{end}.{name}' for name in layout.names]}, or use "
                f'target_modules="all-linear".'
            )


def _token_targets(search: Search) -> list[Target]:
    modules, ties = search.modules, search.ties
    found = tied_tokens(wanted_tokens(search.config, modules, ties.source), ties, search.config)
    if both := [path for path in search.paths if path in found]:
        raise AdapterError(two_ways(both[0]))
    return [Target(p, modules[p], len(t), len(t), tokens=t) for p, t in found.items()]


def _keys(parameters: Iterable[Target]) -> list[str]:
    return [f"{target.path}.{name}" for target in parameters for name in target.parameters]


def _check_patterns(config: LoraConfig, targeted: Iterable[str]) -> None:
    paths = [plain_path(path) for path in targeted]
    for name in ("rank_pattern", "alpha_pattern"):
        for pattern in unmatched_patterns(getattr(config, name), paths):
            close = near(pattern, paths)
            hint = f" Near names: {', '.join(close)}." if close else f" Targets: {some(paths)}."
            raise TargetError(f"{name} {pattern!r} matches none of the targeted layers.{hint}")


def _nothing(config: LoraConfig, modules: Mapping[str, nn.Module]) -> str:
    linear = [path for path, module in modules.items() if path and looks_linear(module)]
    targets = config.target_modules
    asked = [targets] if isinstance(targets, str) else targets or []
    close = dict.fromkeys(name for wanted in asked[:_HINTS] for name in near(wanted, linear))
    hint = f" Near names: {', '.join(close)}." if close else ""
    return (
        f"target_modules={shortened(targets)} (exclude_modules="
        f"{shortened(config.exclude_modules)}) matches no layer "
        f"of this model.{hint} Its linear layers are named: "
        f"{some(dict.fromkeys(path.rsplit('.', 1)[-1] for path in linear))}. "
        f'Use target_modules="all-linear" for all of them.'
    )
