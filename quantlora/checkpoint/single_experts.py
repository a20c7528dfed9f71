"""Adapters on single experts, as Transformers 4 has them, for experts that are one parameter here.

Experts without an adapter get zeros. A router was a layer, and is a parameter of its module now.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.checkpoint.expert_parts import ExpertParts
from quantlora.checkpoint.keys import SINGLE, file_key, split_key
from quantlora.checkpoint.target_names import minimal_names
from quantlora.config.lora_config import LoraConfig
from quantlora.config.patterns import as_pattern, by_pattern
from quantlora.discovery.registration import registry
from quantlora.errors import AdapterFileError
from quantlora.experts.stacks_format import parameter_shapes
from quantlora.files.hub_conversions import expert_projections
from quantlora.layers.experts import experts_layout
from quantlora.layers.layer import LoraLayer
from quantlora.layers.parameters import picked_parameters
from quantlora.names import plain_path

_PAIR = ("lora_A.weight", "lora_B.weight")
#: Parts of stacks by the path of the experts' module, then by the stack's name.
_Stacks = dict[str, dict[str, ExpertParts]]


@dataclass(frozen=True)
class _Single:
    """A layer of one expert in the file: its ``path`` there, and where it belongs in the model."""

    path: str
    owner: str
    number: int
    stack: str
    projection: str


def stacked_experts(
    source: str, adapted: AdaptedModel, config: LoraConfig, tensors: Mapping[str, Tensor]
) -> tuple[LoraConfig, Mapping[str, Tensor]]:
    """``config`` and ``tensors`` with stacks in place of single experts, or as they are.

    Raises:
        AdapterFileError: the file has an expert or a shape that the model has not.
    """
    modules = {plain_path(path): _frozen(module) for path, module in adapted.modules.items()}
    paths = dict.fromkeys(path for key in tensors if (path := split_key(key)[0]))
    projections = expert_projections(adapted.model)
    singles = list(_singles(modules, paths, projections)) if projections else []
    routers = [path for path in paths if _is_router(modules.get(path), path, config)]
    if not (singles or routers):
        return config, tensors
    stacks = _stacks(source, modules, config, tensors, singles, projections)
    gone = {file_key(single.path, name) for single in singles for name in _PAIR}
    new = {key: tensor for key, tensor in tensors.items() if key not in gone}
    for owner, parts in stacks.items():
        for depth, name in enumerate(reversed(parts)):
            prefix = "base_layer." * depth
            pair = zip(_PAIR, parts[name].joined(), strict=True)
            new |= {file_key(owner, prefix + key): tensor for key, tensor in pair}
    done = {single.path for single in singles}
    others = [path for path in paths if path not in done]
    return _config(config, modules, others, routers, stacks), new


def _singles(
    modules: Mapping[str, nn.Module],
    paths: Collection[str],
    projections: Mapping[str, tuple[str, ...]],
) -> Iterator[_Single]:
    stack_of = {name: stack for stack, names in projections.items() for name in names}
    for path in paths:
        found = SINGLE.fullmatch(path)
        if found is None or path in modules or found["projection"] not in stack_of:
            continue
        owner, projection = modules.get(found["experts"]), found["projection"]
        if owner is not None and experts_layout(owner) is not None:
            number, stack = int(found["number"]), stack_of[projection]
            yield _Single(path, found["experts"], number, stack, projection)


def _stacks(
    source: str,
    modules: Mapping[str, nn.Module],
    config: LoraConfig,
    tensors: Mapping[str, Tensor],
    singles: Collection[_Single],
    projections: Mapping[str, tuple[str, ...]],
) -> _Stacks:
    """In the order of the module's parameters, which is the one that files nest them in."""
    stacks: _Stacks = {}
    for single in singles:
        shapes = parameter_shapes(modules[single.owner])
        stacks.setdefault(
            single.owner,
            {n: ExpertParts(projections[n], shapes[n]) for n in shapes if n in projections},
        )
        stack = stacks[single.owner][single.stack]
        pair = [tensors.get(file_key(single.path, name)) for name in _PAIR]
        r = 0 if pair[0] is None else len(pair[0])
        alpha = by_pattern(single.path, config.alpha_pattern, config.lora_alpha)
        part: Any = (*pair, config.scaling(r, alpha) if r else 0.0)
        if None in pair or not stack.fits(single.number, part):
            experts, _, into = stack.shape
            raise AdapterFileError(
                f"{source} does not fit this model: {single.path} lacks A or B, or is no expert of "
                f"{single.owner}, which has {experts} of {stack.rows} outputs and {into} inputs in "
                f"{single.projection}. Is it for another base model?"
            )
        stack.parts[single.number, single.projection] = part
    return {owner: {n: p for n, p in parts.items() if p.parts} for owner, parts in stacks.items()}


def _config(
    config: LoraConfig,
    modules: Mapping[str, nn.Module],
    others: Collection[str],
    routers: Collection[str],
    stacks: _Stacks,
) -> LoraConfig:
    """With names for what is in the file, and the ranks and alphas that it has."""
    layers = [path for path in others if path not in routers]
    named = {f"{path}.weight": path for path in routers} | {path: path for path in layers}
    ranks = {new: by_pattern(old, config.rank_pattern, config.r) for new, old in named.items()}
    alphas: dict[str, float] = {
        new: by_pattern(old, config.alpha_pattern, config.lora_alpha) for new, old in named.items()
    }
    parameters = [f"{path}.weight" for path in routers]
    for owner, parts in stacks.items():
        for name, stack in parts.items():
            parameters.append(path := f"{owner}.{name}")
            ranks[path] = r = sum(stack.ranks)
            alphas[path] = stack.scale * (math.sqrt(r) if config.use_rslora else r)
    (r, rank_pattern), (alpha, alpha_pattern) = as_pattern(ranks), as_pattern(alphas)
    free = [f"{path}.{name}" for path, m in modules.items() for name in parameter_shapes(m)]
    fields: dict[str, Any] = {
        "target_modules": minimal_names(layers, (p for p in modules if p not in layers)),
        "target_parameters": [
            *(config.target_parameters or ()),
            *minimal_names(parameters, (path for path in free if path not in parameters)),
        ],
        **dict.fromkeys(("exclude_modules", "layers_to_transform", "layers_pattern")),
    }
    values: dict[str, Any] = {"rank_pattern": rank_pattern, "alpha_pattern": alpha_pattern}
    return replace(config, r=r, lora_alpha=alpha, **fields, **values)


def _is_router(module: nn.Module | None, path: str, config: LoraConfig) -> bool:
    """Whether the file's adapter on a layer is for the ``weight`` of a module that is none."""
    if module is None or module._modules or registry().candidates(module):
        return False
    weight = module._parameters.get("weight")
    picked = picked_parameters(path, {"weight": None}, config)
    return weight is not None and weight.dim() == 2 and not picked


def _frozen(module: nn.Module) -> nn.Module:
    return module.base_layer if isinstance(module, LoraLayer) else module
