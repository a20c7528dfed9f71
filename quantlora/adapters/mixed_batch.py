"""Mixed batches: one adapter per sample, the base computed once for the whole batch.

with quantlora.mixed_batch(model, ["poems", "code", "__base__"]):
    model(input_ids)        # three samples
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.adapters.adapter_modules import adapter_modules, frozen_modules
from quantlora.adapters.biases import check_biases_shared
from quantlora.adapters.disabling import warn_if_disabled
from quantlora.adapters.expert_lists import check_no_experts
from quantlora.adapters.modules_to_save import ModulesToSaveWrapper
from quantlora.adapters.rows_by_mask import check_rows_by_mask
from quantlora.errors import AdapterError
from quantlora.layers.adapter_module import AdapterModule
from quantlora.layers.calls import Calls
from quantlora.layers.give_samples import give_samples
from quantlora.layers.sub_batch import PromptAdapters
from quantlora.transformers_models import time_first

#: The name that stands for "no adapter" in a mixed batch, as in PEFT.
BASE = "__base__"


@contextmanager
def mixed_batch(
    model: nn.Module,
    adapter_names: Sequence[str],
    *,
    copies: int = 1,
    batch_dim: int | None = None,
) -> Iterator[None]:
    """Within the block, sample i of every batch goes through ``adapter_names[i]``.

    Args:
        copies: a batch may also hold that many samples in a row for each name (beams).
        batch_dim: 1 where layers get sequences as (time, batch, features), 0 for (batch, time,
            features); default: as the module around a layer says, one of torch (``batch_first``)
            or of Transformers' families that are known to transpose, else 0. It cannot be seen
            where the batch is as large as the sequence is long. Those families need no
            ``batch_dim`` and heed none: it differs by layer.

    It holds for the calls of this thread, and for what gradient checkpointing computes of them
    again.
    """
    before = assign_samples(model, adapter_names, copies, batch_dim)
    try:
        yield
    finally:
        restore_samples(model, before)


def assign_samples(
    model: nn.Module, adapter_names: Sequence[str], copies: int = 1, batch_dim: int | None = None
) -> Calls:
    """From now on, sample i of every batch goes through ``adapter_names[i]``.

    Returns what held before, for `restore_samples`.
    """
    adapted = AdaptedModel.of(model)
    for name in set(adapter_names) - {BASE}:
        adapted.state.known(name)
    check_biases_shared(adapted.state, adapter_names)
    check_no_experts(adapted, adapter_names)
    check_rows_by_mask(adapted, adapter_names)
    layers = list(adapted.adapter_modules.values())
    if merged := adapted.merged:
        raise AdapterError(
            f"a mixed batch needs the plain base, but {', '.join(sorted(merged))} is merged into "
            f"it; call quantlora.unmerge(model) first."
        )
    warn_if_disabled(adapted.state)
    turned = _time_first(adapted, batch_dim)
    for layer in turned:
        if isinstance(layer, ModulesToSaveWrapper) and {*adapter_names} & {*layer.adapters}:
            raise AdapterError(
                f"{layer.path}: a module trained in full (modules_to_save) cannot be in a mixed "
                f"batch of (time, batch, features); call the model for each adapter by itself."
            )
    names = tuple(adapter_names)
    if copies > 1:
        names = PromptAdapters(names)
        names.copies = copies
    return give_samples(layers, dict.fromkeys(map(id, layers), names), {*map(id, turned)})


def _time_first(adapted: AdaptedModel, batch_dim: int | None) -> list[AdapterModule]:
    """The layers that get (time, batch, features); the nearest module that says so decides."""
    said_by_path = {path: _said(module) for path, module in frozen_modules(adapted.model)}
    found = {path: said for path, (said, _) in said_by_path.items() if said is not None}
    if batch_dim is not None and not any(family for _, family in said_by_path.values()):
        found = {"": bool(batch_dim)}
    return [
        adapted_module
        for path, adapted_module in adapted.adapter_modules.items()
        if _nearest(found, path)
    ]


def _said(module: nn.Module) -> tuple[bool | None, bool]:
    """What ``module`` says of the layers in it, and whether a family of Transformers says it."""
    if (turned := time_first(module)) is not None:
        return turned, True
    said = [getattr(part, "batch_first", None) for part in (module, *module.children())]
    return next((not answer for answer in said if isinstance(answer, bool)), None), False


def _nearest(found: Mapping[str, bool], path: str) -> bool:
    while path:
        path = path.rpartition(".")[0]
        if path in found:
            return found[path]
    return False


def restore_samples(model: nn.Module, before: Calls) -> None:
    """From now on, samples go as they did ``before``, in a mixed batch around this one too."""
    layers = [layer for _, layer in adapter_modules(model)]
    give_samples(layers, before.samples, before.time_first)
