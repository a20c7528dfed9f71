"""``bias="all"`` and ``bias="lora_only"``: when the trained biases count."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from quantlora.adapters.adapter_modules import adapter_modules
from quantlora.adapters.state import adapter_state
from quantlora.errors import AdapterError
from quantlora.layers.recorded import stop_training


def place_biases(model: nn.Module, names: Sequence[str] | None = None) -> None:
    """Put the biases of the adapters ``names`` in place (default: of those that count now)."""
    state = adapter_state(model)
    counting = (state.active if state.counts else ()) if names is None else names
    for adapter, biases in state.biases.items():
        for one in biases:
            one.place() if adapter in counting else one.restore()


@contextmanager
def biases_of(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Within the block the biases of ``names`` are in place, then again of those that count."""
    place_biases(model, names)
    try:
        yield
    finally:
        place_biases(model)


def leave_biases(model: nn.Module) -> None:
    """Before the adapters go: the model's own again, but for adapters that are merged."""
    merged = {name for _, module in adapter_modules(model) for name in module.merged_adapters}
    for adapter, biases in adapter_state(model).biases.items():
        for one in biases:
            stop_training(one.own)
            one.place() if adapter in merged else one.restore()


def check_biases_together(model: nn.Module, names: Sequence[str]) -> None:
    """Raise `AdapterError` where two of ``names`` have each trained the same bias."""
    seen: dict[int, str] = {}
    for name in dict.fromkeys(names):
        for one in adapter_state(model).biases.get(name, ()):
            other = seen.setdefault(id(one.owner), name)
            if other != name:
                raise AdapterError(
                    f"{one.names[0]}: {other} and {name} have each trained this bias of the model "
                    f"(bias=...) and cannot be active together: choose one."
                )


def check_biases_stay(model: nn.Module, chosen: Sequence[str]) -> None:
    """Raise `AdapterError` where biases would change under a merge, which has taken them in."""
    merged = {name for _, module in adapter_modules(model) for name in module.merged_adapters}
    for name, biases in adapter_state(model).biases.items():
        if merged and any(one.placed != (name in chosen) for one in biases):
            raise AdapterError(
                f"adapter {name!r} has trained biases of the model, which cannot change while "
                f"{', '.join(sorted(merged))} is merged: call quantlora.unmerge(model) first."
            )


def check_biases_shared(model: nn.Module, names: Collection[str]) -> None:
    """Raise `AdapterError` where some samples of a mixed batch would need other biases."""
    state = adapter_state(model)
    counting = state.active if state.enabled else ()
    if own := [name for name in state.biases if name in {*names, *counting}]:
        raise AdapterError(
            f"adapter {own[0]!r} has trained biases of the model (bias=...), which all samples "
            f"share: it can be neither active nor named in a mixed batch."
        )
