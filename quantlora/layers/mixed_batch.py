"""Mixed batches: one adapter per sample, the base computed once for the whole batch.

with quantlora.mixed_batch(model, ["poems", "code", "__base__"]):
    model(input_ids)        # three samples
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from quantlora.errors import AdapterError

#: The name that stands for "no adapter" in a mixed batch, as in PEFT.
BASE = "__base__"


@contextmanager
def mixed_batch(model: nn.Module, adapter_names: Sequence[str]) -> Iterator[None]:
    """Within the block, sample i of every batch goes through ``adapter_names[i]``.

    With gradient checkpointing, call backward within the block too: it computes forward again.
    """
    assign_samples(model, adapter_names)
    try:
        yield
    finally:
        clear_samples(model)


def assign_samples(model: nn.Module, adapter_names: Sequence[str]) -> None:
    """From now on, sample i of every batch goes through ``adapter_names[i]``."""
    from quantlora.adapters.biases import check_biases_shared
    from quantlora.adapters.state import adapter_holders, known_adapter

    for name in set(adapter_names) - {BASE}:
        known_adapter(model, name)
    check_biases_shared(model, adapter_names)
    layers = [layer for _, layer in adapter_holders(model)]
    merged = {name for layer in layers for name in layer.merged}
    if merged:
        raise AdapterError(
            f"a mixed batch needs the plain base, but {', '.join(sorted(merged))} is merged into "
            f"it; call quantlora.unmerge(model) first."
        )
    for layer in layers:
        layer.sample_adapters = tuple(adapter_names)


def clear_samples(model: nn.Module) -> None:
    """From now on, every sample goes through the active adapters."""
    from quantlora.adapters.state import adapter_holders

    for _, layer in adapter_holders(model):
        layer.sample_adapters = None


def rows_by_adapter(
    names: Sequence[str], known: Sequence[str], x: Tensor, path: str
) -> list[tuple[str, Tensor]]:
    """For each adapter of ``known`` that occurs in ``names``, the indices of its samples."""
    if len(names) != x.shape[0]:
        raise AdapterError(
            f"{path}: adapter_names has {len(names)} entries, but the batch has {x.shape[0]} "
            f"samples: give one name per sample (after beams and repeats are expanded)."
        )
    return [
        (name, torch.tensor([i for i, one in enumerate(names) if one == name], device=x.device))
        for name in known
        if name in names
    ]


def pick_rows(x: Tensor, rows: Tensor | None) -> Tensor:
    """The samples ``rows`` of ``x``; all of them for None."""
    return x if rows is None else x.index_select(0, rows)


def add_rows(y: Tensor, rows: Tensor | None, delta: Tensor) -> Tensor:
    """``y`` with ``delta`` added to its samples ``rows``."""
    delta = delta.to(y.dtype)
    return y + delta if rows is None else y.index_add(0, rows, delta)
