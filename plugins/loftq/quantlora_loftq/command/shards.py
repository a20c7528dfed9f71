"""Writing safetensors shards tensor by tensor: no shard is ever in memory."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from quantlora import TENSOR_TYPES

_NAMES = {dtype: name for name, dtype in TENSOR_TYPES.items()}


@dataclass(frozen=True)
class Entry:
    """A tensor that is read when it is written; ``shape`` and ``dtype`` are known before."""

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @property
    def bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_shards(folder: Path, entries: Iterable[Entry], limit: int) -> None:
    """``model.safetensors``, or shards up to ``limit`` bytes and their index."""
    shards = _split(entries, limit)
    total = sum(entry.bytes for shard in shards for entry in shard)
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        name = _name(number, len(shards))
        _write(folder / name, shard)
        weight_map.update(dict.fromkeys((entry.key for entry in shard), name))
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"


def _split(entries: Iterable[Entry], limit: int) -> list[list[Entry]]:
    shards: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if shards[-1] and size + entry.bytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.bytes
    return shards


def _write(file: Path, entries: list[Entry]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        begin, end = end, end + entry.bytes
        header[entry.key] = {
            "dtype": _NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    new = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    with new.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for entry in entries:
            flat = entry.read().contiguous().reshape(-1)
            stream.write(flat.view(torch.uint8).numpy().data)
    os.replace(new, file)
