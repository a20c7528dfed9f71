"""Adapters off: for one block in one thread, or until they are enabled again.

While they are off they are not trained either, as in PEFT: their parameters need no gradient, but
that of a forward from before. That
cannot be said of one thread alone, so the last one to leave gives it back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import Lock

from torch import Tensor, nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.adapters.adapter_modules import parameters_of_adapter, unfrozen_adapters
from quantlora.adapters.biases import install_biases
from quantlora.adapters.state import AdapterState, adapter_state, has_adapters
from quantlora.errors import AdapterError, warn
from quantlora.layers.adapter_module import AdapterModule, switch_off
from quantlora.layers.recorded import stop_training

_LOCK = Lock()


def enable_adapters(model: nn.Module) -> None:
    """Let the active adapters count again after `disable_adapters`."""
    enable(AdaptedModel.of(model))


def enable(adapted: AdaptedModel) -> None:
    """`enable_adapters` of a model that was gone over."""
    state = adapted.state
    switch_off([*adapted.adapter_modules.values(), state], False)
    if not state.enabled:
        _resume(state)
    _set_enabled(adapted, True)


def disable_adapters(model: nn.Module) -> None:
    """Run the base model alone, until `enable_adapters`; for all threads."""
    adapted = AdaptedModel.of(model)
    state = adapted.state
    _check_unmerged(adapted)
    if state.enabled:
        _pause(adapted)
    _set_enabled(adapted, False)


def warn_if_disabled(state: AdapterState) -> None:
    """Say that adapters that were just chosen do not count, after `disable_adapters`."""
    if not state.enabled:
        warn(
            "the adapters are disabled (quantlora.disable_adapters), and those that were chosen "
            "have no effect: call quantlora.enable_adapters(model)."
        )


@contextmanager
def adapters_disabled(model: nn.Module) -> Iterator[None]:
    """Run the base model alone within a ``with`` block, then restore what was.

    It holds for the calls of this thread; trained biases of the model (``bias=...``) are put back
    for all.
    """
    adapted = AdaptedModel.of(model)
    state = adapted.state
    _check_unmerged(adapted)
    things = [state, *adapted.adapter_modules.values()]
    before = state.applied
    _pause(adapted)
    switch_off(things, True)
    install_biases(state)
    try:
        yield
    finally:
        switch_off(things, not before and state.enabled)
        if has_adapters(model):
            state = adapter_state(model)  # another object where an adapter was added meanwhile
            _resume(state)
            install_biases(state)


def trainable_tensors(adapted: AdaptedModel, names: Iterable[str]) -> list[Tensor]:
    """The parameters of the adapters ``names``, with the biases of the model that they train."""
    wanted = tuple(dict.fromkeys(names))
    tensors = [
        tensor
        for layer in adapted.adapter_modules.values()
        for name in wanted
        if layer.has_adapter(name)
        for key, tensor in layer.adapter_tensors(name).items()
        if isinstance(tensor, nn.Parameter) and layer.is_trained(name, key)
    ]
    biases = adapted.state.biases
    return [*tensors, *(bias.parameter for name in wanted for bias in biases.get(name, ()))]


def train_only(adapted: AdaptedModel, names: list[str]) -> None:
    """Let the adapters ``names`` be trained and no others; while they are off, from then on.

    Parameters that were frozen one by one (the A of LoRA-FA) stay so, also in adapters that come
    back. An adapter that is frozen as a whole is trained again, as by PEFT's ``set_adapter``.
    """
    state = adapted.state
    with _LOCK:
        _note_frozen(adapted)
        frozen = {id(tensor) for tensor in state.frozen}
        before = maybe_trained(state, adapted.adapter_modules.values())
        chosen = [
            tensor for tensor in trainable_tensors(adapted, names) if id(tensor) not in frozen
        ]
        state.trained = tuple(names)
        for tensor in _parameters(adapted, before):
            if tensor.requires_grad:
                stop_training(tensor)
        if state.pauses:
            state.paused = chosen
            return
        for tensor in chosen:
            tensor.requires_grad_(True)


def _note_frozen(adapted: AdaptedModel) -> None:
    """Note which parameters of the adapters that are trained are not."""
    state = adapted.state
    paused = {id(tensor) for tensor in state.paused}
    for name in state.trained:
        tensors = trainable_tensors(adapted, [name])
        off = [t for t in tensors if not (id(t) in paused if state.pauses else t.requires_grad)]
        ids = {id(tensor) for tensor in tensors}
        state.frozen = [tensor for tensor in state.frozen if id(tensor) not in ids]
        state.frozen += off if len(off) < len(tensors) else []


def forget_frozen(adapted: AdaptedModel, name: str) -> None:
    """Adapter ``name`` goes: keep nothing of it."""
    ids = {id(tensor) for tensor in trainable_tensors(adapted, [name])}
    state = adapted.state
    state.trained = tuple(trained for trained in state.trained if trained != name)
    state.frozen = [tensor for tensor in state.frozen if id(tensor) not in ids]


def maybe_trained(state: AdapterState, modules: Iterable[AdapterModule]) -> list[str]:
    """The adapters of which a parameter may need a gradient.

    Those that were chosen, and any that somebody has unfrozen by hand. Of the others, of which
    there may be hundreds, the first module that has one is asked, and not all of them.
    """
    found = dict.fromkeys((*state.trained, *state.active))
    rest = {*state.configs} - {*found}
    for module in modules:
        if not rest:
            break
        found |= dict.fromkeys(rest & unfrozen_adapters(module))
        rest.difference_update(module.adapters)
    return list(found)


def _parameters(adapted: AdaptedModel, names: Iterable[str]) -> list[Tensor]:
    """All parameters of the adapters ``names``, and every trained bias."""
    modules = adapted.adapter_modules.values()
    tensors = [p for module in modules for n in names for p in parameters_of_adapter(module, n)]
    return [
        *tensors,
        *(bias.parameter for biases in adapted.state.biases.values() for bias in biases),
    ]


def _set_enabled(adapted: AdaptedModel, enabled: bool) -> None:
    adapted.state.enabled = enabled
    for layer in adapted.adapter_modules.values():
        layer.enabled = enabled
    install_biases(adapted.state)


def _check_unmerged(adapted: AdaptedModel) -> None:
    for path, layer in adapted.adapter_modules.items():
        if layer.merged_adapters:
            raise AdapterError(
                f"{path}: {', '.join(layer.merged_adapters)} is merged into the base and cannot be "
                f"disabled; call quantlora.unmerge(model) first."
            )


def _pause(adapted: AdaptedModel) -> None:
    """Nothing is trained; what was is noted by the first to ask."""
    state = adapted.state
    with _LOCK:
        if not state.pauses:
            names = maybe_trained(state, adapted.adapter_modules.values())
            tensors = trainable_tensors(adapted, names)
            state.paused = [tensor for tensor in tensors if tensor.requires_grad and tensor.is_leaf]
            for tensor in state.paused:
                stop_training(tensor)
        state.pauses += 1


def _resume(state: AdapterState) -> None:
    with _LOCK:
        state.pauses -= 1
        if not state.pauses:
            for tensor in state.paused:
                tensor.requires_grad_(True)
            state.paused = []
