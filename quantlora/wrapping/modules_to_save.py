"""``modules_to_save``: which modules are trained in full, and their copies."""

from __future__ import annotations

import copy
from dataclasses import replace

from torch import nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.adapters.modules_to_save import ModulesToSaveWrapper
from quantlora.config.lora_config import LoraConfig
from quantlora.discovery.registration import registry
from quantlora.errors import AdapterError, LayerError, TargetError
from quantlora.formats.layouts import linear_from
from quantlora.layers.layer import LoraLayer
from quantlora.layers.tied import TiedLayer
from quantlora.names import plain_path
from quantlora.suggestions import near
from quantlora.wrapping.ties import ties_of

#: Names of the heads that a task puts on a model, by ``task_type``: new, so they must be trained.
_HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}


def with_heads(model: nn.Module, config: LoraConfig) -> LoraConfig:
    """``config`` with the new head of its task among ``modules_to_save``, as in PEFT."""
    names = config.modules_to_save or []
    heads = [name for name in _HEADS.get(config.task_type or "", ()) if hasattr(model, name)]
    new = [name for name in heads if name not in names]
    return replace(config, modules_to_save=[*names, *new]) if new else config


def find_saved(adapted: AdaptedModel, config: LoraConfig) -> dict[str, nn.Module]:
    """The modules that ``config`` trains in full, by path; those inside another are left out.

    As in PEFT a name is any ending of a path: ``norm`` also picks ``input_layernorm``.
    Raises `TargetError` where its names match nothing.
    """
    names = config.modules_to_save or []
    modules = {path: module for path, module in adapted.modules.items() if path}
    found = [path for path in modules if plain_path(path).endswith(tuple(names))]
    if names and not found:
        close = [hint for name in names for hint in near(name, modules)]
        raise TargetError(
            f"modules_to_save={names!r} matches no module of this model. Near "
            f"names: {', '.join(dict.fromkeys(close)) or 'none'}."
        )
    if config.ensure_weight_tying:
        found = ties_of(adapted).joined(found)
    outer = [path for path in found if not any(path.startswith(f"{other}.") for other in found)]
    for path in outer:
        _check(path, modules[path])
    return {path: modules[path] for path in outer}


#: Lists of modules or parameters: a model takes their items and never calls the list itself.
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


def _check(path: str, module: nn.Module) -> None:
    plain = module.original_module if isinstance(module, ModulesToSaveWrapper) else module
    if isinstance(plain, _CONTAINERS):
        raise TargetError(
            f"{path}: modules_to_save cannot have a {type(plain).__name__}, whose items the model "
            f"calls and not the list itself: name the items ({path}.0 and so on)."
        )
    if any(isinstance(part, (LoraLayer, TiedLayer)) for part in module.modules()):
        raise AdapterError(
            f"{path}: another adapter has LoRA layers here, so it cannot be trained in full as "
            f"well; leave it out of modules_to_save."
        )


def add_saved(model: nn.Module, path: str, module: nn.Module, adapter: str) -> ModulesToSaveWrapper:
    """Give the module at ``path`` a copy for ``adapter``; within a `Transaction`."""
    saved = (
        module if isinstance(module, ModulesToSaveWrapper) else ModulesToSaveWrapper(module, path)
    )
    saved.add_adapter(adapter, trainable_copy(saved.original_module, path))
    if saved is not module:
        model.set_submodule(path, saved)
    return saved


def trainable_copy(module: nn.Module, path: str) -> nn.Module:
    """A float copy of ``module``: of a quantized layer, the dequantized one."""
    if quantizer := registry().packed_format(module):
        bias = quantizer.bias(module)
        bias = None if bias is None else bias.clone()
        return linear_from(quantizer.dequantize(module).clone(), bias).train(module.training)
    packed = [
        f"{path}.{name}" for name, part in module.named_modules() if registry().packed_format(part)
    ]
    if packed:
        raise LayerError(
            f"{path}: it holds quantized layers ({packed[0]} first), which cannot be trained in "
            f"full; name the modules in it that can, or target it with LoRA."
        )
    return copy.deepcopy(module)
