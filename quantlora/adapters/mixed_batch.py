"""Mixed batches: one adapter per sample, the base computed once for the whole batch.

with quantlora.mixed_batch(model, ["poems", "code", "__base__"]):
    model(input_ids)        # three samples
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from quantlora.adapters.biases import check_biases_shared
from quantlora.adapters.holders import adapter_holders
from quantlora.adapters.state import known_adapter
from quantlora.errors import AdapterError
from quantlora.layers.calls import give_samples
from quantlora.layers.rows import PromptAdapters

#: The name that stands for "no adapter" in a mixed batch, as in PEFT.
BASE = "__base__"


@contextmanager
def mixed_batch(
    model: nn.Module, adapter_names: Sequence[str], *, copies: int = 1
) -> Iterator[None]:
    """Within the block, sample i of every batch goes through ``adapter_names[i]``.

    With ``copies``, a batch may also hold that many samples in a row for each name (beams).

    It holds for the calls of this thread. With gradient checkpointing, call backward within the
    block too: it computes forward again.
    """
    assign_samples(model, adapter_names, copies)
    try:
        yield
    finally:
        clear_samples(model)


def assign_samples(model: nn.Module, adapter_names: Sequence[str], copies: int = 1) -> None:
    """From now on, sample i of every batch goes through ``adapter_names[i]``."""
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
    names = tuple(adapter_names)
    if copies > 1:
        names = PromptAdapters(names)
        names.copies = copies
    give_samples(layers, names)


def clear_samples(model: nn.Module) -> None:
    """From now on, every sample goes through the active adapters."""
    give_samples([layer for _, layer in adapter_holders(model)], None)
