"""``report.json``: what was trained, on what, with what, and what it brought."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from quantlora import MemoryUse, lora_layers
from quantlora_finetune.model.base_model import BaseModel
from quantlora_finetune.options.finetune_options import FinetuneOptions
from quantlora_finetune.reporting.evaluation import Measurement
from quantlora_finetune.training.trainer import Training

#: Changes when a field changes its meaning.
FORMAT = 2


@dataclass(frozen=True)
class ModelFacts:
    """Formats by number of layers, and the size of what is trained."""

    formats: dict[str, int]
    adapted_layers: int
    trained_parameters: int
    compute_dtype: str
    device: str


@dataclass(frozen=True)
class Report:
    """A run: what ``report.json`` holds, and the page and the card tell."""

    base: BaseModel
    model: ModelFacts
    data: dict[str, Any]
    options: FinetuneOptions
    training: Training
    before: Measurement
    after: Measurement
    predicted: MemoryUse
    machine: dict[str, Any] = field(default_factory=lambda: _machine())
    versions: dict[str, str] = field(default_factory=lambda: _versions())

    @property
    def title(self) -> str:
        return f"{short_name(self.base.name)}, fine-tuned on {short_name(self.data['name'])}"

    @property
    def fall_percent(self) -> float:
        """By how many percent the perplexity fell."""
        return round(100 * (1 - self.after.perplexity / self.before.perplexity), 2)

    @property
    def memory(self) -> dict[str, MemoryUse]:
        """``predicted`` and, where a step was made to measure, ``measured``."""
        measured = self.training.memory
        return {"predicted": self.predicted} | ({"measured": measured} if measured else {})

    def as_json(self) -> dict[str, Any]:
        """Plain values; seconds, bytes and counts are in the fields' names."""
        base = {"name": self.base.name, "place": self.base.model_id_or_path}
        return {
            "format": FORMAT,
            "model": base | asdict(self.model),
            "data": self.data,
            "perplexity": self._perplexity(),
            "compared": self._compared(),
            "sample": self._sample(),
            "training": self.training.as_json(),
            "memory": self._memory(),
            "options": self.options.as_json(),
            "machine": self.machine,
            "versions": self.versions,
        }

    def _perplexity(self) -> dict[str, float]:
        before, after = self.before.perplexity, self.after.perplexity
        return {"before": before, "after": after, "fall_percent": self.fall_percent}

    def _compared(self) -> dict[str, dict[str, float | None]]:
        """What trainers that compare answers are measured by; nothing for others."""
        before, after = self.before, self.after
        found = {
            "preferred": {"before": before.preferred, "after": after.preferred},
            "reward": {"before": before.reward, "after": after.reward},
        }
        return {name: both for name, both in found.items() if both["before"] is not None}

    def _memory(self) -> dict[str, dict[str, int] | None]:
        memory = {name: use.as_json() for name, use in self.memory.items()}
        return {name: memory.get(name) for name in ("predicted", "measured")}

    def _sample(self) -> dict[str, str]:
        before, after = self.before.continuation, self.after.continuation
        return {"prompt": self.before.prompt, "before": before, "after": after}


def short_name(name_or_path: str) -> str:
    """A hub id as it is, a local path without its folders: card and page may be published."""
    path = Path(name_or_path)
    return path.name if path.is_absolute() else name_or_path


def model_facts(model: PreTrainedModel) -> ModelFacts:
    """Of a wrapped model, as it is trained."""
    layers = [layer for _, layer in lora_layers(model)]
    return ModelFacts(
        formats=dict(Counter(layer.quantizer.name for layer in layers)),
        adapted_layers=len(layers),
        trained_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        compute_dtype=str(model.dtype).removeprefix("torch."),
        device=model.device.type,
    )


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
