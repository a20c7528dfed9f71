"""What ``quantlora inspect FOLDER`` tells of an adapter, from its files alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quantlora.checkpoint.keys import split_key
from quantlora.checkpoint.location import CONFIG, DEFAULT, find_folder
from quantlora.checkpoint.read import read_adapter
from quantlora.checkpoint.saved_adapter import SavedAdapter
from quantlora.config.lora_config import LoraConfig
from quantlora.config.patterns import by_pattern
from quantlora.formats.flattened import count_bytes
from quantlora.units import dtype_name

#: Names the form of the JSON; fields may be added under one id.
SCHEMA = "quantlora.inspect.adapter/1"
_A, _B = ("lora_A.weight", "lora_B.weight")


@dataclass(frozen=True)
class AdaptedKind:
    """The layers of one name: ``q_proj`` of every block.

    Args:
        shape: ``(out_features, in_features)``; of convolutions with what their kernel takes.
        ranks: from the smallest to the largest.
        update: mean Frobenius norm of ``s · B · A``, 0 where nothing was trained.
        largest: the path with the largest norm.
    """

    name: str
    count: int
    shape: tuple[int, int]
    ranks: tuple[int, int]
    parameters: int
    update: float
    largest: str


@dataclass(frozen=True)
class AdapterInspection:
    """An adapter: its config in short, its tensors, and what it was trained on."""

    folder: str
    base: str
    task_type: str
    variant: str
    r: int
    lora_alpha: float
    use_rslora: bool
    dtype: str
    parameters: int
    bytes: int
    trained_on: tuple[str, ...]
    kinds: tuple[AdaptedKind, ...]
    others: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self)}


def is_adapter_folder(folder: str) -> bool:
    """Whether there is an adapter's config in it, and no model's."""
    return Path(folder, CONFIG).is_file() and not Path(folder, "config.json").is_file()


def inspect_adapter(folder: str) -> AdapterInspection:
    """Read the adapter in ``folder``; no model is needed.

    Raises `AdapterFileError` where its files are missing or damaged.
    """
    saved = read_adapter(find_folder(folder, DEFAULT))
    layers = _layers(saved.tensors)
    in_layers = {id(tensor) for tensors in layers.values() for tensor in tensors.values()}
    others = [key for key, tensor in saved.tensors.items() if id(tensor) not in in_layers]
    config = saved.config
    return AdapterInspection(
        folder,
        config.base_model_name_or_path or "",
        config.task_type or "",
        config.variant,
        config.r,
        config.lora_alpha,
        config.use_rslora,
        ", ".join(sorted({dtype_name(tensor.dtype) for tensor in saved.tensors.values()})),
        sum(tensor.numel() for tensor in saved.tensors.values()),
        count_bytes(saved.tensors.values()),
        tuple(_formats(saved)),
        tuple(_kinds(layers, config)),
        tuple(sorted({split_key(key)[0] or split_key(key)[1] for key in others})),
    )


def _layers(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors of each LoRA layer that has an A and a B, by their names in it."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        path, name = split_key(key)
        found.setdefault(path, {})[name] = tensor
    return {path: layer for path, layer in found.items() if path and {_A, _B} <= layer.keys()}


def _kinds(layers: Mapping[str, Mapping[str, Tensor]], config: LoraConfig) -> Iterator[AdaptedKind]:
    groups: dict[tuple[str, tuple[int, int]], list[str]] = {}
    for path, layer in layers.items():
        shape = (len(layer[_B]), layer[_A][0].numel())
        groups.setdefault((path.rpartition(".")[2], shape), []).append(path)
    for (name, shape), paths in groups.items():
        norms = {path: _norm(path, layers[path], config) for path in paths}
        ranks = [len(layers[path][_A]) for path in paths]
        size = sum(tensor.numel() for path in paths for tensor in layers[path].values())
        mean, largest = sum(norms.values()) / len(norms), max(norms, key=lambda path: norms[path])
        yield AdaptedKind(name, len(paths), shape, (min(ranks), max(ranks)), size, mean, largest)


def _norm(path: str, layer: Mapping[str, Tensor], config: LoraConfig) -> float:
    """``s · ‖B A‖`` by the two Gram matrices, ``(r, r)`` each: the update is never made."""
    first, second = layer[_A].flatten(1).double(), layer[_B].flatten(1).double()
    if first.shape[0] != second.shape[1]:
        return float("nan")  # a grouped convolution: B is no matrix of this rank
    alpha = by_pattern(path, config.alpha_pattern, config.lora_alpha)
    scale = config.scaling(len(first), alpha)
    squared = torch.sum((first @ first.T) * (second.T @ second))
    return abs(scale) * float(squared.clamp(min=0).sqrt())


def _formats(saved: SavedAdapter) -> Iterator[str]:
    """What ``quantlora.json`` says of the base in training."""
    for facts in saved.note.get("formats", ()):
        settings = ", ".join(
            f"{k} {v}" for k, v in facts.items() if k not in ("quantizer", "layers")
        )
        count = len(facts.get("layers", ()))
        yield f"{facts.get('quantizer')} ({settings}): {count} layers"
