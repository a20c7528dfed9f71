"""Which parameters get an adapter of their own: ``target_parameters``, matched as in PEFT."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from torch import nn

from quantlora.adapters.adapter_modules import frozen_modules
from quantlora.config.lora_config import LoraConfig
from quantlora.errors import TargetError
from quantlora.experts.packed import PackedExperts
from quantlora.experts.stacks_format import parameter_shapes
from quantlora.formats.parameters import parameter_names
from quantlora.layers.layer import LoraLayer
from quantlora.layers.parameters import LoraParameters, picked_parameters
from quantlora.names import outer_path
from quantlora.suggestions import near
from quantlora.wrapping.target import Target


def parameter_targets(
    modules: Mapping[str, nn.Module],
    config: LoraConfig,
    layers: Collection[str],
    strict: bool = True,
) -> list[Target]:
    """The modules with picked parameters, each once.

    Rank and alpha are those of the first; `LoraParameters` looks for those of the others.

    Args:
        layers: paths that get an adapter as a whole; they cannot have another one inside.

    Raises `TargetError` where a name matches no parameter that can be adapted, or ``strict`` and
    none at all: PEFT puts ``gate.weight`` into files of models that call their router otherwise.
    """
    if not config.target_parameters:
        return []
    names_of = {path: _names(module) for path, module in modules.items()}
    every = names_of.items()
    picked = {path: picked_parameters(path, dict.fromkeys(n), config) for path, n in every}
    targets = {path: names for path, names in picked.items() if path and names}
    if strict or not targets:
        _check_names(config.target_parameters, names_of)
    found = []
    for path, names in targets.items():
        _check_owner(path, modules[path], names, layers)
        first = Target.of(f"{path}.{names[0]}", modules[path], config)
        found.append(replace(first, path=path, parameters=tuple(names)))
    return found


def _names(module: nn.Module) -> tuple[str, ...]:
    if isinstance(module, LoraParameters):
        return tuple(dict.fromkeys((*parameter_names(module.base_layer), *module.shapes)))
    if isinstance(module, PackedExperts):
        return (*parameter_names(module), *module.stacks)
    return () if isinstance(module, LoraLayer) else parameter_names(module)


def _check_names(wanted: list[str], names_of: Mapping[str, tuple[str, ...]]) -> None:
    every = [f"{path}.{name}" for path, names in names_of.items() for name in names if path]
    for target in wanted:
        if not any(f".{key}".endswith(f".{target}") for key in every):
            close = ", ".join(near(target, every)) or "none"
            raise TargetError(
                f"target_parameters: {target!r} matches no parameter of this model that is free "
                f"for an adapter. Near names: {close}."
            )


def _check_owner(path: str, module: nn.Module, names: list[str], layers: Collection[str]) -> None:
    if path in layers:
        raise TargetError(
            f"{path}: target_modules gives this layer an adapter, and target_parameters another "
            f"one to its {names[0]!r}: leave it out of one of them."
        )
    base = module.base_layer if isinstance(module, LoraParameters) else module
    shapes = parameter_shapes(base)
    for name in names:
        if name not in shapes:
            raise TargetError(
                f"{path}.{name}: target_parameters takes float parameters with two or three "
                f"dimensions, and this is none. Packed layers are for target_modules."
            )


def check_reachable(
    modules: Mapping[str, nn.Module],
    inner: Collection[str],
    picks: Callable[[str, nn.Module], bool],
) -> None:
    """Refuse a name that picks a layer inside a module whose parameters are adapted already.

    Args:
        modules: what can be a target, by path.
        inner: paths of layers that are targets with the module around them.
        picks: whether a path and its module are targets.
    """
    for outer, around in modules.items():
        for name, module in frozen_modules(around) if isinstance(around, LoraParameters) else ():
            path = outer_path(f"{outer}.{name}")
            if path not in (outer, *inner) and picks(path, module):
                raise TargetError(
                    f"{path} is inside {outer}, whose parameters have adapters already: name it "
                    f"together with them in the first adapter, or leave it out by exclude_modules."
                )
