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

from quantlora.adapters.adapter_modules import adapter_modules, adapter_parameters
from quantlora.adapters.biases import place_biases
from quantlora.adapters.state import AdapterState, adapter_state, has_adapters
from quantlora.errors import AdapterError
from quantlora.layers.per_call import switch_off
from quantlora.layers.recorded import stop_training

_LOCK = Lock()


def enable_adapters(model: nn.Module) -> None:
    """Let the active adapters count again after `disable_adapters`."""
    state = adapter_state(model)
    layers = [layer for _, layer in adapter_modules(model)]
    switch_off([*layers, state], False)
    if not state.enabled:
        _resume(state)
    _enable(model, True)


def disable_adapters(model: nn.Module) -> None:
    """Run the base model alone, until `enable_adapters`; for all threads."""
    state = adapter_state(model)
    _check_unmerged(model)
    if state.enabled:
        _pause(model, state)
    _enable(model, False)


@contextmanager
def adapters_disabled(model: nn.Module) -> Iterator[None]:
    """Run the base model alone within a ``with`` block, then restore what was.

    It holds for the calls of this thread; trained biases of the model (``bias=...``) are put back
    for all.
    """
    state = adapter_state(model)
    _check_unmerged(model)
    things = [state, *(layer for _, layer in adapter_modules(model))]
    before = state.counts
    _pause(model, state)
    switch_off(things, True)
    place_biases(model)
    try:
        yield
    finally:
        switch_off(things, not before and state.enabled)
        if has_adapters(model):
            _resume(adapter_state(model))  # another object where an adapter was added meanwhile
            place_biases(model)


def trainable_tensors(model: nn.Module, names: Iterable[str]) -> list[Tensor]:
    """The parameters of the adapters ``names``, with the biases of the model that they train."""
    wanted = set(names)
    tensors = [
        tensor
        for _, layer in adapter_modules(model)
        for name in layer.adapters
        if name in wanted
        for tensor in layer.adapter_tensors(name).values()
        if isinstance(tensor, nn.Parameter)
    ]
    biases = adapter_state(model).biases
    return [*tensors, *(one.own for name in names for one in biases.get(name, ()))]


def train_only(model: nn.Module, names: list[str]) -> None:
    """Let the adapters ``names`` be trained and no others; while they are off, from then on."""
    state = adapter_state(model)
    chosen = trainable_tensors(model, names)
    with _LOCK:
        for tensor in _all_of_adapters(model, state):
            if tensor.requires_grad:
                stop_training(tensor)
        if state.pauses:
            state.paused = chosen
            return
        for tensor in chosen:
            tensor.requires_grad_(True)


def _all_of_adapters(model: nn.Module, state: AdapterState) -> list[Tensor]:
    """`trainable_tensors` of every adapter, without asking each for its tensors by name."""
    tensors = [p for _, layer in adapter_modules(model) for p in adapter_parameters(layer)]
    return [*tensors, *(one.own for biases in state.biases.values() for one in biases)]


def _enable(model: nn.Module, enabled: bool) -> None:
    adapter_state(model).enabled = enabled
    for _, layer in adapter_modules(model):
        layer.enabled = enabled
    place_biases(model)


def _check_unmerged(model: nn.Module) -> None:
    for path, layer in adapter_modules(model):
        if layer.merged_adapters:
            raise AdapterError(
                f"{path}: {', '.join(layer.merged_adapters)} is merged into the base and cannot be "
                f"disabled; call quantlora.unmerge(model) first."
            )


def _pause(model: nn.Module, state: AdapterState) -> None:
    """Nothing is trained; what was is noted by the first to ask."""
    with _LOCK:
        if not state.pauses:
            tensors = trainable_tensors(model, list(state.configs))
            state.paused = [one for one in tensors if one.requires_grad and one.is_leaf]
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
