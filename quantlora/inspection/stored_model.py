"""The model of a folder, a hub id or a file that a plugin reads, without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from quantlora.formats.model_loader import LoadRequest, StoredModel
from quantlora.inspection.checkpoint_format import CheckpointFormat
from quantlora.inspection.meta_model import build_meta_model, load_config
from quantlora.loading.load import claiming_loader


@dataclass(frozen=True)
class ModelSource:
    """What is inspected.

    Args:
        model: on the meta device.
        checkpoint: the format of its layers; None for floats.
        formats: of single layers, by path, where a file says it of each.
        costs: bytes of one number of a parameter, by its name, where a file says it.
    """

    model: nn.Module
    checkpoint: CheckpointFormat | None
    formats: Mapping[str, str] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)


def model_source(source: str) -> ModelSource:
    """Raises `ConfigError` where it cannot be read."""
    request = LoadRequest(source)
    loader = claiming_loader(request)
    file = None if loader is None else loader.describe(request)
    if loader is None or file is None:
        config = load_config(source)
        return ModelSource(build_meta_model(config), CheckpointFormat.of(config))
    return _of_file(loader.name, file)


def _of_file(name: str, file: StoredModel) -> ModelSource:
    sizes = {path: p.numel() for path, p in file.model.named_parameters()}
    tensors = {path: t for path, t in file.tensors.items() if sizes.get(path)}
    formats = {path.removesuffix(".weight"): f"{name} {t.format}" for path, t in tensors.items()}
    costs = {path: t.bytes / sizes[path] for path, t in tensors.items()}
    return ModelSource(file.model, CheckpointFormat(name, file.settings), formats, costs)
