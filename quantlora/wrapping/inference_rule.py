"""What `explain` says of generating: which layers keep a copy for it, and what all of them take."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import nn

from quantlora.formats.inference_copy import InferenceCopy
from quantlora.formats.inference_memory import inference_memory, planned
from quantlora.formats.layouts import is_linear_kind
from quantlora.layers.layer import LoraLayer
from quantlora.units import format_size
from quantlora.wrapping.plan import PlannedLayer


def inference_rule(model: nn.Module, plan: Sequence[PlannedLayer]) -> str:
    """One sentence about the layers of ``plan`` that are packed already; empty where none is."""
    dtype = _dtype(model)
    forms: dict[str, list[int]] = defaultdict(list)
    for layer in plan:
        copy = _copy(layer, dtype)
        if copy is not None:
            forms[copy.form].append(copy.nbytes)
    if not forms:
        return ""
    parts = [f"{len(sizes)} as {form} ({format_size(sum(sizes))})" for form, sizes in forms.items()]
    limit = inference_memory().limit
    return (
        f"Generating on this CPU, layers keep a second form of their weight: {', '.join(parts)}; "
        f"up to {format_size(limit)} in all (quantlora.inference_memory)."
    )


def _copy(planned_layer: PlannedLayer, dtype: torch.dtype) -> InferenceCopy | None:
    layer = planned_layer.layer
    base = layer.base_layer if isinstance(layer, LoraLayer) else layer
    skipped = planned_layer.quantize or planned_layer.target.parameters
    if skipped or not is_linear_kind(base) or _is_meta(base):
        return None
    quantizer = planned_layer.quantizer
    return planned(quantizer, base, quantizer.compute_dtype(base) or dtype)


def _dtype(model: nn.Module) -> torch.dtype:
    """That of the activations, as far as the parameters tell."""
    floats = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next(floats, torch.get_default_dtype())


def _is_meta(layer: nn.Module) -> bool:
    return any(tensor.is_meta for tensor in (*layer.parameters(), *layer.buffers()))
