"""Loading an export again, and comparing it with the model it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.adapters.not_runnable import idle
from quantlora.discovery.registration import registry
from quantlora.errors import MergeError, warn
from quantlora.experts.stacks_format import whole_weights
from quantlora.exporting.export_tensors import MergedTensors
from quantlora.exporting.model_outputs import (
    active_only,
    furthest,
    never_called,
    outputs,
    relative,
    usable_inputs,
)
from quantlora.formats.parameters import PackedParameters
from quantlora.transformers_models import dtype_argument

#: Largest relative error of the logits, by the dtype of the exported weights.
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
#: The same for one packed weight that is read back (Frobenius).
_WEIGHT = 0.02


@dataclass(frozen=True)
class Check:
    """What was compared.

    Args:
        logits: relative error of the model's outputs: ``max |export - model| / max |model|``;
            None where no inputs could be made for this architecture, or the format cannot run on
            this machine.
        weights: the same for the weight matrices of the first and last adapted layer, of all that
            the inputs did not reach, and, without ``logits``, for every tensor of the export.
    """

    logits: float | None
    weights: dict[str, float]


def check_export(folder: Path, source: MergedTensors, inputs: Mapping[str, Tensor] | None) -> Check:
    """Load ``folder`` with the model's own class; raise `MergeError` where it is not the model.

    The logits of a packed export differ by what packing lost, so there only the weights decide.
    """
    model: Any = source.model
    loaded = _load(folder, source)
    unreached: set[str] = set()
    adapted = source.adapted
    with active_only(adapted, source.names), never_called(adapted, unreached):
        asked = (inputs, outputs(model, inputs)) if inputs else usable_inputs(model)
    runs = not idle(AdaptedModel(loaded))
    unreached |= set() if runs else {*adapted.lora_layers}
    weights = _weights(loaded, source, unreached)  # first: some kernels repack at their forward
    if not runs:
        asked = None
    elif asked is None:
        _say_no_inputs(model)
        weights |= _tensors(loaded, source)
    logits = None if asked is None else furthest(_computed(loaded, asked[0], source), asked[1])
    _decide(Check(logits, weights), source)
    return Check(logits, weights)


def _load(folder: Path, source: MergedTensors) -> nn.Module:
    """The export as its own class reads it, computing its experts in the way the model does."""
    model: Any = source.model
    kept = getattr(model.config, "_experts_implementation", None)
    experts = {"experts_implementation": kept} if isinstance(kept, str) else {}
    wanted = dtype_argument(source.dtype)
    loaded: nn.Module = type(model).from_pretrained(folder, **wanted, **experts, device_map=None)
    return loaded.eval()


def _computed(loaded: nn.Module, inputs: Mapping[str, Tensor], source: MergedTensors) -> Any:
    """The outputs of ``loaded``, which some classes cannot have as Transformers loads them."""
    try:
        return outputs(loaded, inputs)
    except RuntimeError:
        other = [
            name for name, parameter in loaded.named_parameters() if parameter.dtype != source.dtype
        ]
        if not other or source.mode != "dequantize":
            raise
        warn(
            f"export_merged: Transformers loads {other[0]} (one of {len(other)}) in another dtype "
            f"than {source.dtype}, and {type(loaded).__name__} cannot compute so: call "
            f"model.to({source.dtype}) after from_pretrained.",
        )
        return outputs(loaded.to(source.dtype), inputs)


def _decide(found: Check, source: MergedTensors) -> None:
    far = {path: error for path, error in found.weights.items() if not error <= _WEIGHT}
    if far:
        raise MergeError(
            f"the export was loaded again, and its weights are not those written: {far} (relative "
            f"error). This format's files differ from its layers in memory; use "
            f'mode="dequantize". Nothing was kept.'
        )
    model: Any = source.model
    limit = max(TOLERANCES.get(dtype, 0.1) for dtype in (source.dtype, model.dtype))
    if found.logits is None or source.mode != "dequantize":
        return
    if not found.logits <= limit:
        raise MergeError(
            f"the export was loaded again, and its logits differ by {found.logits:.3g} of the "
            f"largest one, more than {limit} for {source.dtype}. Nothing was kept."
        )


def _say_no_inputs(model: nn.Module) -> None:
    warn(
        f"export_merged: no inputs could be made for {type(model).__name__}, so the export was "
        f"loaded again and compared tensor by tensor, not by its outputs; give sample={{...}} to "
        f"compare these too.",
    )


@torch.no_grad()
def _weights(loaded: nn.Module, source: MergedTensors, unreached: set[str]) -> dict[str, float]:
    """The first and the last adapted layer, and those that no output tells of."""
    paths = source.adapted.lora_layers
    wanted = dict.fromkeys((next(iter(paths)), next(reversed(paths)), *sorted(unreached)))
    return {path: _weight_error(loaded, source, path) for path in wanted}


def _weight_error(loaded: nn.Module, source: MergedTensors, path: str) -> float:
    base, quantizer = source.merged(path, source.adapted.lora_layers[path])
    layer = loaded.get_submodule(path)
    if isinstance(quantizer, PackedParameters):
        return _parameters_error(base, layer)
    wanted = quantizer.dequantize(base).float().cpu()
    reader = quantizer if quantizer.is_float else registry().match(path, layer)
    found = reader.dequantize(layer).float().cpu()
    return float((found - wanted).norm() / wanted.norm())


def _parameters_error(base: nn.Module, layer: nn.Module) -> float:
    """The same for parameters: by name, for two modules may have them in another order."""
    wanted, found = whole_weights(base), whole_weights(layer)
    rows = [
        torch.cat([tensors[name].float().cpu().reshape(-1) for name in wanted])
        for tensors in (wanted, found)
    ]
    return float((rows[1] - rows[0]).norm() / rows[0].norm())


@torch.no_grad()
def _tensors(loaded: nn.Module, source: MergedTensors) -> dict[str, float]:
    """Every tensor that was written beside the one that was read; a missing one is NaN."""
    there = loaded.state_dict()
    return {
        name: relative(there[name].double().cpu(), tensor.double().cpu())
        if name in there
        else float("nan")
        for name, tensor in source
        if source.mode == "dequantize"
    }
