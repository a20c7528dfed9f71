"""Folding adapters into the base and out again, by policy and never silently at a loss.

    W' = dequantize(Q) + Σ s · B · A        over the adapters that are merged

However many adapters are merged, W' is packed once. What packing it loses of the update is
measured for every layer: ``loss = ‖requantize(W') - W'‖ / ‖W' - dequantize(Q)‖``. The layer from
before the merge is kept as it is, so `unmerge` is bit-exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.adapters.biases import biases_of, install_biases
from quantlora.adapters.state import AdapterState
from quantlora.adapters.switch import activate, check_together, remove_adapters
from quantlora.distributed.gather import is_shard
from quantlora.errors import MergeError, warn
from quantlora.formats.finite import not_finite
from quantlora.merging.merge_layer import MODES, merge_layer, not_finite_text
from quantlora.merging.merge_report import MergeReport
from quantlora.merging.tied import untie_merged


@torch.no_grad()
def merge(
    model: nn.Module, adapters: str | Sequence[str] | None = None, *, mode: str = "requantize"
) -> MergeReport:
    """Fold ``adapters`` (default: the active ones) into the base; `unmerge` takes them out.

    An adapter that is folded in counts, so those of ``adapters`` that were not active become so.

    Args:
        mode: ``"requantize"`` packs the merged weight in the layer's own format; ``"dequantize"``
            leaves a float layer, without loss and 16 bits or more per weight; ``"keep"`` merges
            float layers only and leaves the adapters of packed layers as they are; ``"exact"``
            keeps the bits without loss, for variants made for it (QA-LoRA).

    Returns:
        What became of each layer, with the relative loss of its update.

    Raises:
        MergeError: a format cannot pack and ``mode`` asks for it, ``mode`` is unknown, or the
            adapters are disabled. The model is as it was.
    """
    if mode not in MODES:
        raise MergeError(f"mode must be one of {', '.join(MODES)}, got {mode!r}.")
    return merge_adapters(AdaptedModel.of(model), adapters, mode)


def merge_adapters(
    adapted: AdaptedModel, adapters: str | Sequence[str] | None, mode: str
) -> MergeReport:
    """`merge` of a model that was gone over."""
    state = adapted.state
    names = chosen_adapters(state, adapters)
    check_enabled(state)
    active = tuple(dict.fromkeys((*state.active, *names)))
    _check_whole(adapted.model)
    floating = outer_dtype(adapted)
    check_together(adapted, active)
    _check_trained_besides(adapted, names)
    with biases_of(state, active):
        merged = [
            layer_merge
            for path, layer in adapted.lora_layers.items()
            if (layer_merge := merge_layer(path, layer, names, mode, floating)) is not None
        ]
    were_active, state.active = state.active, active
    install_biases(state)  # now, for under a merge they do not change
    for layer_merge in merged:
        layer_merge.commit()
    for saved in adapted.saved_modules.values():
        saved.merged_adapters = tuple(
            name for name in saved.adapters if name in (*saved.merged_adapters, *names)
        )
    if active != were_active:
        activate(adapted, active)
    report = MergeReport([layer_merge.report for layer_merge in merged])
    if loss := report.warning():
        warn(loss, UserWarning)
    return report


def unmerge(model: nn.Module) -> None:
    """Put every merged layer's original base back, bit for bit."""
    adapted = AdaptedModel.of(model)
    for layer in adapted.lora_layers.values():
        if layer.bases_before_merge:
            layer.base_layer, layer.quantizer = layer.bases_before_merge.pop()
            layer.merged_adapters = ()
    for saved in adapted.saved_modules.values():
        saved.merged_adapters = ()


def merge_and_remove(
    model: nn.Module, adapters: str | Sequence[str] | None = None, *, mode: str = "requantize"
) -> None:
    """`quantlora.merge_and_unload` but for Transformers' methods."""
    adapted = AdaptedModel.of(model)
    names = chosen_adapters(adapted.state, adapters)
    left = [name for name in adapted.state.active if name not in names]
    if left:
        raise MergeError(
            f"adapters {', '.join(left)} are active but not to be merged, and would be lost: merge "
            f"them too, or quantlora.set_adapter(model, {list(names)!r}) first."
        )
    if mode == "keep":
        raise MergeError(
            'mode="keep" leaves adapters on packed layers: there is nothing to unload.'
        )
    merge_adapters(adapted, names, mode)
    remove_adapters(model)
    untie_merged(model)


def chosen_adapters(state: AdapterState, adapters: str | Sequence[str] | None) -> tuple[str, ...]:
    """Names of the adapters to merge: ``adapters``, or the active ones."""
    chosen = state.active if adapters is None else adapters
    names = (chosen,) if isinstance(chosen, str) else tuple(dict.fromkeys(chosen))
    for name in names:
        state.known(name)
    if not names:
        raise MergeError(
            "no adapter is active or named, so there is nothing to merge: choose one with "
            "quantlora.set_adapter(model, name)."
        )
    return names


def check_enabled(state: AdapterState) -> None:
    """Raise `MergeError` where the adapters are disabled."""
    if not state.applied:
        raise MergeError(
            "the adapters are disabled, and a merged one would count all the same: call "
            "quantlora.enable_adapters(model) before you merge."
        )


def _check_trained_besides(adapted: AdaptedModel, names: Sequence[str]) -> None:
    """Raise `MergeError` where a copy or a bias of the adapters ``names`` holds NaN or infinity."""
    copies = {
        (name, path): saved.adapter_tensors(name)
        for path, saved in adapted.saved_modules.items()
        for name in names
        if name in saved.adapters
    }
    for name in names:
        for bias in adapted.state.biases.get(name, ()):
            copies[name, bias.names[0]] = {"bias": bias.parameter}
    for (name, path), tensors in copies.items():
        if bad := not_finite(tensors):
            raise MergeError(not_finite_text(path, name, bad[0]))


def _check_whole(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if is_shard(parameter):
            raise MergeError(
                f"{name}: the model is sharded over several processes and no process has its whole "
                f"weights: call quantlora.save_adapter on all of them, then load and merge in one."
            )


def outer_dtype(adapted: AdaptedModel) -> torch.dtype | None:
    """The dtype of the float parameters around the LoRA layers: that of the activations."""
    inside = {id(p) for layer in adapted.lora_layers.values() for p in layer.parameters()}
    outside = (p.dtype for p in adapted.model.parameters() if id(p) not in inside)
    return next((dtype for dtype in outside if dtype.is_floating_point), None)
