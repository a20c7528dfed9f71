"""Moving updates into zero-points (arXiv:2309.14717, section 3.3)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from quantlora import AffineWeight, MergeError, Quantizer, registry

if TYPE_CHECKING:
    from quantlora_qalora.layer import QaloraLinear


def affine_of(
    layer: QaloraLinear, base: nn.Module, quantizer: Quantizer, names: Sequence[str]
) -> AffineWeight:
    """The base as a grid, or a `MergeError` where an exact merge cannot be."""
    plain = [name for name in names if not layer.pools(name)]
    if plain:
        raise MergeError(
            f"{layer.path}: {', '.join(plain)} is plain LoRA, whose update differs within a group; "
            f'only QA-LoRA merges exactly. Use mode="requantize" or mode="dequantize".'
        )
    weight = quantizer.affine(base)
    if weight is None:
        raise MergeError(
            f"{layer.path}: format {quantizer.name!r} has no zero-points to hold the update; use "
            f'mode="requantize" or mode="dequantize".'
        )
    return weight.by_row()  # an update is another one for each output


def affine_quantizer(own: Quantizer, path: str) -> Quantizer:
    """The layer's own format where it can hold float zero-points, else the preferred one here."""
    others = sorted(
        registry().quantizers.values(),
        key=lambda quantizer: (-quantizer.preference, quantizer.name),
    )
    for quantizer in (own, *others):
        if quantizer.can_hold_affine and not quantizer.availability_error():
            return quantizer
    raise MergeError(
        f"{path}: no backend here can hold float zero-points; enable the plugin 'normalfloat'."
    )


def moved(weight: AffineWeight, updates: Iterable[Tensor]) -> AffineWeight:
    """``zero' = zero - Σ update / scale``.

    Args:
        updates: ``s·BA`` of each adapter, ``(out_features, adapter groups)``.
    """
    weight = _with_room(weight)
    zeros = weight.zeros.double()
    for update in updates:
        ratio = zeros.shape[1] // update.shape[1]
        zeros = zeros - update.double().repeat_interleave(ratio, dim=1) / weight.scales.double()
    return replace(weight, zeros=zeros.float(), scales=weight.scales.float())


def _with_room(weight: AffineWeight) -> AffineWeight:
    """A group whose scale is 0 holds zeros only; as code 0 of scale 1 it can hold an update."""
    dead = weight.scales == 0
    if not bool(dead.any()):
        return weight
    return replace(
        weight,
        codes=torch.where(weight.by_input(dead), 0, weight.codes),
        scales=torch.where(dead, 1.0, weight.scales),
        zeros=torch.where(dead, 0.0, weight.zeros),
    )
