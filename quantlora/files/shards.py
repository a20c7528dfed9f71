"""Safetensors in shards, one in memory at a time, with the index Transformers reads."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from quantlora.files.safetensors_file import write_tensors

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


class ShardWriter:
    """Writes tensors into ``folder`` as they come.

    Args:
        limit: bytes a shard may have; a larger tensor gets one of its own.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.total = 0
        self.names: list[list[str]] = []
        self._held: dict[str, Tensor] = {}

    def write(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        size = 0
        for name, tensor in tensors:
            if self._held and size + tensor.nbytes > self.limit:
                self._close()
                size = 0
            self._held[name] = tensor
            size += tensor.nbytes
            self.total += tensor.nbytes
        self._close()
        self._name()

    def _close(self) -> None:
        plain = {name: tensor.cpu().contiguous() for name, tensor in self._held.items()}
        write_tensors(self._place(len(self.names)), _apart(plain))
        self.names.append(list(plain))
        self._held = {}

    def _place(self, index: int) -> Path:
        return self.folder / f"shard-{index}"

    def _name(self) -> None:
        """Give the shards their names, which tell how many they are; write the index."""
        count = len(self.names)
        if count == 1:
            self._place(0).rename(self.folder / _SINGLE)
            return
        files = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
        for index, file in enumerate(files):
            self._place(index).rename(self.folder / file)
        pairs = zip(files, self.names, strict=True)
        places = {name: file for file, names in pairs for name in names}
        index_file = {"metadata": {"total_size": self.total}, "weight_map": places}
        (self.folder / _INDEX).write_text(json.dumps(index_file, indent=2, sort_keys=True), "utf-8")


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of those that share memory with another one, which the format refuses."""
    owners: dict[int, str] = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        shared = owners.setdefault(storage.data_ptr(), name) != name
        if shared or storage.nbytes() != tensor.nbytes:
            tensors[name] = tensor.clone()
    return tensors
