"""`nn.MultiheadAttention` as a target: its ``in_proj_weight`` and its ``out_proj``, as in PEFT.

PEFT's ``lora.MultiheadAttention`` gives both the rank and alpha of the attention's own name. Its
``merge``, which runs around each forward too, adds the update of ``out_proj`` twice (0.21;
huggingface/peft, pull request 3774). An adapter is worth what it was trained to compute, so it
counts twice here as well; the gradient, which PEFT takes of one of the two, is that of the output.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch import nn

from quantlora.config.lora_config import LoraConfig
from quantlora.errors import ConfigError, LayerError
from quantlora.formats.attention import IN_PROJ, OUT_PROJ, is_attention, separate_weights
from quantlora.layers.layer import LoraLayer
from quantlora.layers.parameters import LoraParameters
from quantlora.wrapping.target import Target

#: How often PEFT adds the update of ``out_proj``.
_TIMES = 2


def attention_of(module: nn.Module) -> nn.Module | None:
    """The attention that ``module`` is, or whose parameters it adapts."""
    base = module.base_layer if isinstance(module, LoraParameters) else module
    return base if is_attention(base) else None


def attention_targets(
    paths: Iterable[str], modules: Mapping[str, nn.Module], config: LoraConfig
) -> list[Target]:
    """The targets that the attentions among ``paths`` stand for, two for each."""
    found: list[Target] = []
    for path in paths:
        if attention_of(modules[path]) is not None:
            _check_attention(path, modules[path], config)
            found += _both_layers(Target.of(path, modules[path], config))
    return found


def _check_attention(path: str, module: nn.Module, config: LoraConfig) -> None:
    """Whether the attention at ``path`` can be a target of ``config`` as a whole.

    Raises:
        LayerError: query, key and value have a parameter each.
        ConfigError: ``config`` asks for what cannot be had on both of its layers.
    """
    attention = attention_of(module)
    assert attention is not None
    if names := separate_weights(attention):
        raise LayerError(
            f"{path}: an attention with separate weights for query, key and value (kdim, vdim) is "
            f'no target as a whole: name its parts, target_modules=["{path}.{OUT_PROJ}"], '
            f"target_parameters={[f'{path}.{name}' for name in names]}."
        )
    asked = {
        f"bias={config.bias!r}": config.bias != "none",
        f"variant {config.variant!r}": config.variant != "lora",
        "lora_bias": config.lora_bias,
    }
    if faults := [name for name, given in asked.items() if given]:
        raise ConfigError(
            f"{path}: adapters on a whole nn.MultiheadAttention cannot have {', '.join(faults)}: "
            f"name {path}.{OUT_PROJ} in its place, or leave it out by exclude_modules."
        )


def _both_layers(whole: Target) -> list[Target]:
    """The two targets that the attention ``whole`` stands for.

    Paths are those of the plain model, also where the attention has adapters already.
    """
    attention = attention_of(whole.layer)
    assert attention is not None
    path, layer = f"{whole.path}.{OUT_PROJ}", attention.get_submodule(OUT_PROJ)
    out = replace(whole, path=path, layer=layer, lora_alpha=_TIMES * whole.lora_alpha)
    return [out, replace(whole, parameters=(IN_PROJ,))]


def set_layer(model: nn.Module, path: str, layer: LoraLayer) -> None:
    """Put ``layer`` at ``path`` of the plain model, also in a module with adapted parameters."""
    before, _, name = path.rpartition(".")
    parent = model.get_submodule(before)
    owner = parent.base_layer if isinstance(parent, LoraParameters) else parent
    owner.set_submodule(name, layer)
