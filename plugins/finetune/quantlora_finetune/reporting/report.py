"""``report.json``: what was trained, on what, with what, and what it brought."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from quantlora import MemoryUse, lora_layers
from quantlora_finetune.data.dataset import Dataset
from quantlora_finetune.model.base_model import BaseModel
from quantlora_finetune.options.finetune_options import FinetuneOptions
from quantlora_finetune.reporting.evaluation import Measurement
from quantlora_finetune.training.trainer import Training

#: Changes when a field changes its meaning.
FORMAT = 2


def make_report(
    base: BaseModel,
    model: PreTrainedModel,
    data: Dataset,
    options: FinetuneOptions,
    training: Training,
    before: Measurement,
    after: Measurement,
    predicted: MemoryUse,
) -> dict[str, Any]:
    """All figures are plain JSON; seconds, bytes and counts are in the fields' names."""
    return {
        "format": FORMAT,
        "model": {"name": base.name, "place": base.place, **model_facts(model)},
        "data": data.facts(),
        "perplexity": {
            "before": before.perplexity,
            "after": after.perplexity,
            "fall_percent": fall(before, after),
        },
        "sample": {
            "prompt": before.prompt,
            "before": before.continuation,
            "after": after.continuation,
        },
        "training": training.as_json(),
        "memory": {
            "predicted": predicted.as_json(),
            "measured": training.memory.as_json() if training.memory else None,
        },
        "options": options.as_json(),
        "machine": _machine(),
        "versions": _versions(),
    }


def short_name(place: str) -> str:
    """A hub id as it is, a local path without its folders: card and page may be published."""
    return Path(place).name if Path(place).is_absolute() else place


def fall(before: Measurement, after: Measurement) -> float:
    """By how many percent the perplexity fell."""
    return round(100 * (1 - after.perplexity / before.perplexity), 2)


def model_facts(model: PreTrainedModel) -> dict[str, Any]:
    """Formats by number of layers, and the size of what is trained."""
    layers = [layer for _, layer in lora_layers(model)]
    trained = [p for p in model.parameters() if p.requires_grad]
    return {
        "formats": dict(Counter(layer.quantizer.name for layer in layers)),
        "adapted_layers": len(layers),
        "trained_parameters": sum(p.numel() for p in trained),
        "compute_dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
    }


def _machine() -> dict[str, Any]:
    facts: dict[str, Any] = {
        "system": platform.platform(),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "peak_memory_bytes": _peak_memory(),
    }
    if torch.cuda.is_available():
        facts["accelerator"] = torch.cuda.get_device_name()
        facts["peak_accelerator_bytes"] = torch.cuda.max_memory_allocated()
    return facts


def _peak_memory() -> int | None:
    """Of this process; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _versions() -> dict[str, str]:
    wanted = ("quantlora", "torch", "transformers", "accelerate")
    return {name: importlib.metadata.version(name) for name in wanted}
