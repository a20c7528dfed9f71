"""Which adapters are active: set, delete, rename. For any wrapped `nn.Module`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.adapters.adapter_modules import frozen_modules
from quantlora.adapters.biases import (
    check_biases_stay,
    check_biases_together,
    install_biases,
    leave_biases,
)
from quantlora.adapters.disabling import forget_frozen, train_only, warn_if_disabled
from quantlora.adapters.modules_to_save import ModulesToSaveWrapper
from quantlora.adapters.not_runnable import LEFT, not_runnable
from quantlora.adapters.packed_config import note_packed
from quantlora.adapters.read_by_model import readable_bases
from quantlora.adapters.releasing import Prepared
from quantlora.adapters.state import adapter_state, set_state
from quantlora.errors import AdapterError, warn
from quantlora.layers.hooks import move_hooks
from quantlora.layers.layer import LoraLayer
from quantlora.layers.tied import TiedLayer
from quantlora.layers.trained_tokens import TrainedTokens
from quantlora.names import check_name


def set_adapter(model: nn.Module, names: str | Sequence[str]) -> None:
    """Make ``names`` the active adapters: their products are summed, and only they are trained.

    After `disable_adapters` they count from `enable_adapters` on, as in PEFT; a warning says so.

    Raises:
        AdapterError: a name is unknown, an adapter is merged and not among ``names``, or two of
            them have each trained the same module in full.
    """
    adapted = AdaptedModel.of(model)
    activate(adapted, (names,) if isinstance(names, str) else names)
    warn_if_disabled(adapted.state)


def activate(adapted: AdaptedModel, names: Iterable[str]) -> None:
    """`set_adapter` of a model that was gone over."""
    state, chosen = adapted.state, tuple(dict.fromkeys(names))
    for name in chosen:
        state.known(name)
    _check_merged(adapted, chosen)
    check_together(adapted, chosen)
    check_biases_stay(adapted, chosen)
    state.active = chosen
    for layer in adapted.adapter_modules.values():
        layer.activate(chosen)
        layer.enabled = state.enabled
    train_only(adapted, [name for name in chosen if not state.configs[name].inference_mode])
    install_biases(state)


def _check_merged(adapted: AdaptedModel, chosen: Sequence[str]) -> None:
    for path, layer in adapted.adapter_modules.items():
        left = [name for name in layer.merged_adapters if name not in chosen]
        if left:
            raise AdapterError(
                f"{path}: {', '.join(left)} is merged into the base and would still count: name it "
                f"too, or call quantlora.unmerge(model) first."
            )


def check_together(adapted: AdaptedModel, names: Sequence[str]) -> None:
    """Raise `AdapterError` where two of ``names`` have each trained the same module in full."""
    for path, saved in adapted.saved_modules.items():
        trained_by = [name for name in dict.fromkeys(names) if name in saved.adapters]
        if len(trained_by) > 1:
            raise AdapterError(
                f"{path}: {' and '.join(trained_by)} have each trained this module in full "
                f"(modules_to_save) and cannot be active together: choose one."
            )
    for path, layer in adapted.lora_layers.items():
        if isinstance(layer, TrainedTokens) and (both := layer.overlap(names)):
            raise AdapterError(
                f"{path}: {' and '.join(names)} have each trained token {min(both)} "
                f"(trainable_token_indices) and cannot be active together: choose one."
            )
    check_biases_together(adapted.state, names)


def plain_weight(tied: TiedLayer) -> nn.Parameter:
    """The weight that stays when the adapters go: the source's own, or the merged one."""
    source: Any = tied.source
    plain: Any = source.plain if isinstance(source, ModulesToSaveWrapper) else source.base_layer
    weight: nn.Parameter = plain.weight
    return weight


def active_adapters(model: nn.Module) -> list[str]:
    """Names of the active adapters."""
    return list(adapter_state(model).active)


def delete_adapter(model: nn.Module, name: str) -> None:
    """Remove adapter ``name`` for good; the layers keep their place for the others.

    Where it was the only active one, the oldest of the others becomes so, with an
    `AdapterWarning`: a model without an active adapter would answer as the base does.
    """
    adapted = AdaptedModel.of(model)
    state = adapted.state
    state.known(name)
    for path, layer in adapted.adapter_modules.items():
        if name in layer.merged_adapters:
            raise AdapterError(f"{path}: adapter {name!r} is merged; unmerge it first.")
    forget_frozen(adapted, name)
    for layer in adapted.adapter_modules.values():
        if name in layer.adapters:
            layer.remove_adapter(name)
    was_active = name in state.active
    state.active = tuple(adapter for adapter in state.active if adapter != name)
    install_biases(state)
    state.biases.pop(name, None)
    del state.configs[name]
    if was_active and not state.active and state.configs:
        successor = next(iter(state.configs))
        activate(adapted, [successor])
        warn(
            f"adapter {name!r} was active and is deleted: {successor!r} is active now. Choose "
            f"another one with quantlora.set_adapter.",
        )
    if not state.configs:
        Prepared.of(adapted).release_layers()  # the model itself once our layers are gone


def rename_adapter(model: nn.Module, old: str, new: str) -> None:
    """Give adapter ``old`` the name ``new``; it stays active, merged or trained as it was.

    Raises:
        AdapterError: there is no adapter ``old``, or there is one called ``new``.
        ConfigError: ``new`` cannot be a part of module paths and file names.
    """
    adapted = AdaptedModel.of(model)
    state = adapted.state
    state.known(old)
    check_name(new)
    state.check_free(new)
    for layer in adapted.adapter_modules.values():
        if old in layer.adapters:
            layer.rename_adapter(old, new)
    state.configs = {new if name == old else name: config for name, config in state.configs.items()}
    state.biases = {new if name == old else name: trained for name, trained in state.biases.items()}
    state.active = tuple(new if name == old else name for name in state.active)
    state.trained = tuple(new if name == old else name for name in state.trained)


def remove_adapters(model: nn.Module) -> None:
    """`quantlora.unload` but for Transformers' methods."""
    adapted = AdaptedModel.of(model)
    leave_biases(adapted)
    plain = readable_bases(adapted)
    every = list(frozen_modules(model, repeat=True))
    for adapter_module in adapted.adapter_modules.values():
        adapter_module.left_model = True
    for path, module in reversed(every):  # what is inside another one of ours comes first
        if isinstance(module, LoraLayer):
            move_hooks(module, plain[module])
            model.set_submodule(path, plain[module])
        elif isinstance(module, ModulesToSaveWrapper):
            model.set_submodule(path, module.plain)
        elif isinstance(module, TiedLayer):
            module.base_layer.weight = plain_weight(module)
            move_hooks(module, module.base_layer)
            model.set_submodule(path, module.base_layer)
    set_state(model, None)
    try:
        if adapted.state.configs or adapted.lora_layers:
            Prepared.of(adapted).release()
    finally:
        note_packed(model)
        _say_not_runnable(adapted, plain)


def _say_not_runnable(adapted: AdaptedModel, plain: Mapping[LoraLayer, nn.Module]) -> None:
    """Tell of what is left in the model and cannot run."""
    left = (
        (path, plain[layer], layer.quantizer)
        for path, layer in adapted.lora_layers.items()
        if plain[layer] is layer.base_layer
    )
    if text := not_runnable(left, LEFT):
        warn(text)
