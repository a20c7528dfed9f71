"""``bias="all"`` and ``bias="lora_only"``: when the trained biases count."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.adapters.state import AdapterState
from quantlora.errors import AdapterError
from quantlora.layers.recorded import stop_training


def install_biases(state: AdapterState, names: Sequence[str] | None = None) -> None:
    """Put the biases of the adapters ``names`` in place (default: of the active ones)."""
    applied = (state.active if state.applied else ()) if names is None else names
    for adapter, biases in state.biases.items():
        for bias in biases:
            bias.install() if adapter in applied else bias.restore()


@contextmanager
def biases_of(state: AdapterState, names: Sequence[str]) -> Iterator[None]:
    """Within the block the biases of ``names`` are in place, then again of the active ones."""
    install_biases(state, names)
    try:
        yield
    finally:
        install_biases(state)


def leave_biases(adapted: AdaptedModel) -> None:
    """Before the adapters go: the model's own again, but for adapters that are merged."""
    merged = adapted.merged
    for adapter, biases in adapted.state.biases.items():
        for bias in biases:
            stop_training(bias.parameter)
            bias.install() if adapter in merged else bias.restore()


def check_biases_together(state: AdapterState, names: Sequence[str]) -> None:
    """Raise `AdapterError` where two of ``names`` have each trained the same bias."""
    seen: dict[int, str] = {}
    for name in dict.fromkeys(names):
        for bias in state.biases.get(name, ()):
            other = seen.setdefault(id(bias.owner), name)
            if other != name:
                raise AdapterError(
                    f"{bias.names[0]}: {other} and {name} have each trained this bias of the model "
                    f"(bias=...) and cannot be active together: choose one."
                )


def check_biases_stay(adapted: AdaptedModel, chosen: Sequence[str]) -> None:
    """Raise `AdapterError` where biases would change under a merge, which has taken them in."""
    merged = adapted.merged
    for name, biases in adapted.state.biases.items():
        if merged and any(bias.placed != (name in chosen) for bias in biases):
            raise AdapterError(
                f"adapter {name!r} has trained biases of the model, which cannot change while "
                f"{', '.join(sorted(merged))} is merged: call quantlora.unmerge(model) first."
            )


def check_biases_shared(state: AdapterState, names: Collection[str]) -> None:
    """Raise `AdapterError` where some samples of a mixed batch would need other biases."""
    applied = state.active if state.enabled else ()
    if named := [name for name in state.biases if name in {*names, *applied}]:
        raise AdapterError(
            f"adapter {named[0]!r} has trained biases of the model (bias=...), which all samples "
            f"share: it can be neither active nor named in a mixed batch."
        )
