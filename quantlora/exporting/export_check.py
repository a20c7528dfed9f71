"""Loading an export again, and comparing it with the model it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantlora.adapters.holders import lora_layers
from quantlora.bridge.transformers_bridge import dtype_argument
from quantlora.discovery.registration import registry
from quantlora.errors import MergeError
from quantlora.exporting.export_tensors import MergedTensors
from quantlora.wrapping.plan import FLOAT

#: Largest relative error of the logits, by the dtype of the exported weights.
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
#: The same for one packed weight that is read back (Frobenius).
_WEIGHT = 0.02


@dataclass(frozen=True)
class Check:
    """What was compared.

    Args:
        logits: relative error of the logits, ``max |export - model| / max |model|``.
        weights: the same for the weight matrices of the first and last adapted layer.
    """

    logits: float
    weights: dict[str, float]


def check_export(folder: Path, source: MergedTensors, inputs: Mapping[str, Tensor] | None) -> Check:
    """Load ``folder`` with the model's own class; raise `MergeError` where it is not the model.

    The logits of a packed export differ by what packing lost, so there only the weights decide.
    """
    model: Any = source.model
    wanted = dtype_argument(source.dtype)
    loaded = type(model).from_pretrained(folder, **wanted, device_map=None).eval()
    weights = _weights(loaded, source)  # first: some kernels repack at their first forward
    found = Check(_logits(loaded, model, inputs or _sample(model)), weights)
    far = {path: error for path, error in found.weights.items() if error > _WEIGHT}
    if far:
        raise MergeError(
            f"the export was loaded again, and its weights are not those written: {far} (relative "
            f"error). This format's files differ from its layers in memory; use "
            f'mode="dequantize". Nothing was kept.'
        )
    limit = max(TOLERANCES.get(dtype, 0.1) for dtype in (source.dtype, model.dtype))
    if source.mode == "dequantize" and not found.logits <= limit:
        raise MergeError(
            f"the export was loaded again, and its logits differ by {found.logits:.3g} of the "
            f"largest one, more than {limit} for {source.dtype}. Nothing was kept."
        )
    return found


@torch.no_grad()
def _logits(loaded: nn.Module, model: nn.Module, inputs: Mapping[str, Tensor]) -> float:
    training = model.training
    model.eval()
    try:
        device = next(model.parameters()).device
        wanted = model(**{key: value.to(device) for key, value in inputs.items()})[0].float().cpu()
    finally:
        model.train(training)
    error = (loaded(**inputs)[0].float() - wanted).abs().max() / wanted.abs().max()
    return float(error)


def _sample(model: Any) -> dict[str, Tensor]:
    """Random tokens, two sequences of eight."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config().vocab_size
    return {"input_ids": torch.randint(0, vocabulary, (2, 8), generator=generator)}


@torch.no_grad()
def _weights(loaded: nn.Module, source: MergedTensors) -> dict[str, float]:
    paths = dict(lora_layers(source.model))
    errors: dict[str, float] = {}
    for path in dict.fromkeys((next(iter(paths)), next(reversed(paths)))):
        base, quantizer = source.merged(path, paths[path])
        wanted = quantizer.dequantize(base).float().cpu()
        layer = loaded.get_submodule(path)
        reader = quantizer if quantizer.name == FLOAT else registry().match(path, layer)
        found = reader.dequantize(layer).float()
        errors[path] = float((found - wanted).norm() / wanted.norm())
    return errors
