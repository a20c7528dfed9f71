"""A model's safetensors: one file, or shards with the index that Transformers reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from torch import Tensor

from quantlora.files.atomic_file import Writer
from quantlora.files.stream_tensors import TensorSource, stream_tensors

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

Shard = Mapping[str, TensorSource]


def shard_files(tensors: Iterable[tuple[str, TensorSource]], limit: int) -> dict[str, Writer]:
    """The writer of each file by its name, for `write_set`; the index last.

    Args:
        limit: bytes a shard may have; a larger tensor gets one of its own.
    """
    shards = list(_grouped(tensors, limit))
    names = _names(len(shards))
    files: dict[str, Writer] = {
        name: partial(stream_tensors, tensors=shard)
        for name, shard in zip(names, shards, strict=True)
    }
    if len(shards) > 1:
        size = sum(source.nbytes for shard in shards for source in shard.values())
        text = index_text(dict(zip(names, shards, strict=True)), size)
        files[INDEX] = partial(Path.write_text, data=text, encoding="utf-8")
    return files


class ShardWriter:
    """Writes tensors into ``folder`` as they come, one shard of them in memory at a time.

    Args:
        limit: bytes a shard may have; a larger tensor gets one of its own.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.total = 0
        self.names: list[list[str]] = []

    def write(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        sources = ((name, TensorSource.of(tensor)) for name, tensor in tensors)
        for shard in _grouped(sources, self.limit):
            stream_tensors(self._unnamed(len(self.names)), shard)
            self.names.append(list(shard))
            self.total += sum(source.nbytes for source in shard.values())
            del shard  # before the next one is made
        self._name()

    def _unnamed(self, index: int) -> Path:
        return self.folder / f"shard-{index}"

    def _name(self) -> None:
        """Give the shards their names, which tell how many they are; write the index."""
        files = _names(len(self.names))
        for index, file in enumerate(files):
            self._unnamed(index).rename(self.folder / file)
        if len(files) > 1:
            text = index_text(dict(zip(files, self.names, strict=True)), self.total)
            (self.folder / INDEX).write_text(text, "utf-8")


def _grouped(tensors: Iterable[tuple[str, TensorSource]], limit: int) -> Iterator[Shard]:
    """``tensors`` in their order, as many together as ``limit`` bytes allow; one group at least."""
    shard: dict[str, TensorSource] = {}
    size = 0
    for name, source in tensors:
        if shard and size + source.nbytes > limit:
            yield shard
            shard, size = {}, 0
        shard[name] = source
        size += source.nbytes
    yield shard


def _names(count: int) -> list[str]:
    if count == 1:
        return [SINGLE]
    return [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]


def index_text(names_by_file: Mapping[str, Iterable[str]], size: int) -> str:
    """The index of files that hold tensors of these names, ``size`` bytes together."""
    file_of = {name: file for file, names in names_by_file.items() for name in names}
    index = {"metadata": {"total_size": size}, "weight_map": file_of}
    return json.dumps(index, indent=2, sort_keys=True)
