"""`GgufFile`: the tensors of a file by name, checked before any is read.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quantlora.errors import ConfigError
from quantlora_gguf.block_types import BLOCK_TYPES, BlockType
from quantlora_gguf.cursor import Cursor

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_F32 = 0
_BY_NUMBER = {kind.number: kind for kind in BLOCK_TYPES.values()}
#: Metadata of the tokenizer, whose arrays are long.
_VOCABULARY = "tokenizer."
_ARCHITECTURE, _ALIGNMENT = "general.architecture", "general.alignment"
#: Dimensions that a tensor can have in ggml.
_MOST_DIMENSIONS = 4


@dataclass(frozen=True)
class FileTensor:
    """One tensor: ``shape`` in torch's order, ``kind`` None for float32, where its bytes are."""

    name: str
    shape: tuple[int, ...]
    kind: BlockType | None
    start: int
    nbytes: int


class GgufFile:
    """The header of a file, read and checked; the tensors' bytes are read when asked for.

    `metadata` has None for arrays. `raw_entries` has the bytes of each entry but vocabularies.

    Raises:
        ConfigError: it is no such file, ends too early, or has a tensor that cannot be: the
            message names the tensor and the reason.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.stat().st_size < len(MAGIC):
            raise ConfigError(f"{path} is no GGUF file: it is empty.")
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
            self._read_header(Cursor(data, str(path)))

    def _read_header(self, cursor: Cursor) -> None:
        tensors, entries = _check_start(cursor)
        self.metadata: dict[str, int | str | None] = {}
        self.raw_entries: dict[str, bytes] = {}
        for _ in range(entries):
            self._add_metadata(cursor)
        table = [_entry(cursor) for _ in range(tensors)]
        start = _aligned(cursor, self.metadata.get(_ALIGNMENT, 32))
        self.tensors: dict[str, FileTensor] = {}
        for name, shape, number, offset in table:
            self._add(cursor, name, shape, number, start + offset)

    @property
    def architecture(self) -> str:
        """``general.architecture``: the family of the model, in llama.cpp's words."""
        found = self.metadata.get(_ARCHITECTURE)
        if not isinstance(found, str):
            raise ConfigError(f"{self.path} does not say its {_ARCHITECTURE}.")
        return found

    def packed(self, name: str) -> Tensor:
        """The bytes of a tensor in blocks, uint8 ``(..., bytes of a row)``, a copy."""
        tensor = self.tensors[name]
        assert tensor.kind is not None
        shape = (*tensor.shape[:-1], tensor.kind.row_bytes(tensor.shape[-1]))
        return torch.from_numpy(self._bytes(tensor)).view(shape)

    def values(self, name: str) -> Tensor:
        """A tensor in float32, in torch's order of dimensions."""
        tensor = self.tensors[name]
        if tensor.kind is not None:
            return tensor.kind.dequantize(self.packed(name))
        return torch.from_numpy(self._bytes(tensor).view("<f4")).view(tensor.shape)

    def _bytes(self, tensor: FileTensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Read, not mapped: pages of a mapped file would count as memory beside the copy."""
        found = np.fromfile(self.path, np.uint8, count=tensor.nbytes, offset=tensor.start)
        if found.size != tensor.nbytes:
            raise ConfigError(f"{self.path}: it has become shorter while it was read.")
        return found

    def _add_metadata(self, cursor: Cursor) -> None:
        """A value by its key, and its bytes; of a vocabulary only that it is there."""
        start = cursor.at
        key = cursor.text("the metadata")
        value = self.metadata[key] = cursor.value(f"metadata {key!r}")
        if value is not None or not key.startswith(_VOCABULARY):
            self.raw_entries[key] = cursor.data[start : cursor.at]

    def _add(
        self, cursor: Cursor, name: str, shape: tuple[int, ...], number: int, start: int
    ) -> None:
        if name in self.tensors:
            raise cursor.error(f"it has tensor {name} twice")
        kind = _BY_NUMBER.get(number)
        if kind is None and number != _F32:
            known = ", ".join(sorted(BLOCK_TYPES))
            raise ConfigError(
                f"{self.path}: tensor {name} has type {_name_of(number)}, which is not read; "
                f"these are: F32, {known}."
            )
        if kind is not None and shape[-1] % kind.elements:
            raise cursor.error(
                f"tensor {name} has rows of {shape[-1]}, no multiple of a block of {kind.name}"
            )
        nbytes = 4 * prod(shape) if kind is None else prod(shape[:-1]) * kind.row_bytes(shape[-1])
        missing = start + nbytes - len(cursor.data)
        if missing > 0:
            raise cursor.error(f"tensor {name} lacks {min(missing, nbytes)} of its {nbytes} bytes")
        self.tensors[name] = FileTensor(name, shape, kind, start, nbytes)


def _check_start(cursor: Cursor) -> tuple[int, int]:
    """The numbers of tensors and of entries of the metadata."""
    if cursor.data[: len(MAGIC)] != MAGIC:
        raise ConfigError(
            f"{cursor.name} is no GGUF file: it does not begin with {MAGIC.decode()}."
        )
    cursor.at = len(MAGIC)
    version = cursor.number("I", "its version")
    if version not in _VERSIONS:
        kinds = " and ".join(map(str, _VERSIONS))
        raise ConfigError(
            f"{cursor.name} is GGUF version {version} (or big-endian); versions {kinds} are read. "
            f"Convert the model again."
        )
    return cursor.number("Q", "its header"), cursor.number("Q", "its header")


def _entry(cursor: Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape in torch's order, number of the type and offset of a tensor."""
    name = cursor.text("the list of tensors")
    what = f"the entry of tensor {name}"
    count = cursor.number("I", what)
    if not 1 <= count <= _MOST_DIMENSIONS:
        raise cursor.error(f"tensor {name} has {count} dimensions")
    sizes = tuple(cursor.number("Q", what) for _ in range(count))
    if 0 in sizes or prod(sizes) > 1 << 62:
        raise cursor.error(f"tensor {name} has the shape {sizes}")
    return name, sizes[::-1], cursor.number("I", what), cursor.number("Q", what)


def _aligned(cursor: Cursor, alignment: int | str | None) -> int:
    """Where the tensors' bytes begin."""
    if not isinstance(alignment, int) or alignment <= 0:
        raise cursor.error(f"{_ALIGNMENT} is {alignment!r}")
    return -(-cursor.at // alignment) * alignment


def _name_of(number: int) -> str:
    """The type's name in the package, where it knows it."""
    import gguf

    try:
        return str(gguf.GGMLQuantizationType(number).name)
    except ValueError:
        return str(number)
