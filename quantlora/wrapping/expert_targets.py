""" "all-linear" means the linear maps of fused experts too: their parameters are named here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from quantlora.config.lora_config import LoraConfig
from quantlora.config.picked_paths import TargetNames
from quantlora.discovery.registration import registry
from quantlora.layers.experts import LoraExperts, experts_layout
from quantlora.layers.layer import LoraLayer
from quantlora.names import plain_path


def with_experts(modules: Mapping[str, nn.Module], config: LoraConfig) -> LoraConfig:
    """``config`` with the parameters of all fused experts in ``target_parameters``.

    As it is where ``target_modules`` is no "all-linear", ``target_experts`` is off, parameters are
    named already, or experts cannot have such an adapter (`why_no_experts`).
    """
    targets = TargetNames(config)
    if not (targets.all_linear and config.target_experts) or config.target_parameters:
        return config
    names = [] if why_no_experts(config) else _names(modules, targets)
    return replace(config, target_parameters=names) if names else config


def why_no_experts(config: LoraConfig) -> str:
    """What in ``config`` adapters on experts cannot have; empty where they can."""
    asked = {
        f"variant {config.variant!r}": config.variant != "lora",
        "lora_bias": config.lora_bias,
        "fan_in_fan_out": config.fan_in_fan_out,
        f"init_lora_weights={config.init_lora_weights!r}": (
            not (is_random(config) or registry().initializer(config).takes_experts)
        ),
    }
    return ", ".join(name for name, given in asked.items() if given)


def is_random(config: LoraConfig) -> bool:
    """Whether first values look at no weight."""
    return config.init_lora_weights in (True, False, "gaussian")


def _names(modules: Mapping[str, nn.Module], targets: TargetNames) -> list[str]:
    """The shortest endings with the module's own name that pick no excluded parameter."""
    stacks = [(path, name) for path, module in modules.items() for name in _stacks(module)]
    wanted = [
        (plain_path(path), name)
        for path, name in stacks
        if targets.pick(plain_path(path)) and targets.pick(f"{plain_path(path)}.{name}")
    ]
    left = {f"{plain_path(path)}.{name}" for path, name in stacks}
    left -= {f"{path}.{name}" for path, name in wanted}
    names = []
    for path, name in wanted:
        ending = f"{path.rpartition('.')[2]}.{name}"
        unique = not any(f".{other}".endswith(f".{ending}") for other in left)
        names.append(ending if unique else f"{path}.{name}")
    return list(dict.fromkeys(names))


def _stacks(module: nn.Module) -> tuple[str, ...]:
    if isinstance(module, LoraLayer):
        return module.layout.names if isinstance(module, LoraExperts) else ()
    layout = experts_layout(module)
    return () if layout is None else layout.names
