"""Safetensors files: written whole, read tensor by tensor with plain reads.

Not mapped: the pages of a mapped file count as the process's memory until the system wants them
back, so that a walk over a model would seem to hold, and under a memory limit may hold, all of it.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import struct
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from quantlora.errors import ConfigError

#: The format's names of dtypes.
TENSOR_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool, "C64": torch.complex64,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}  # fmt: skip


def write_tensors(
    file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write ``tensors``, each contiguous and with memory of its own, by their names.

    Raises:
        OSError: the system refuses. Safetensors gives its error (a full disk, say) as text only.
    """
    try:
        save_file(dict(tensors), file, dict(metadata or {"format": "pt"}))
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        number = int(found.group(1)) if found else errno.EIO
        raise OSError(number, os.strerror(number), str(file)) from error


class TensorFile:
    """One safetensors file, opened once. A tensor is read when it is asked for."""

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            self._stream = file.open("rb", buffering=0)
        except OSError as error:
            raise ConfigError(f"{file} cannot be read: {error.strerror or error}.") from error
        weakref.finalize(self, self._stream.close)
        self._header, self._begin = self._read_header()
        self.metadata: dict[str, str] = self._header.pop("__metadata__", {})
        for key, entry in self._header.items():
            if fault := _fault(entry, os.path.getsize(file) - self._begin):
                raise self._damaged(f"{key} {fault}")

    @property
    def keys(self) -> list[str]:
        return list(self._header)

    def __contains__(self, key: str) -> bool:
        return key in self._header

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._header[key]["shape"])

    def dtype(self, key: str) -> torch.dtype:
        name = self._header[key]["dtype"]
        if name not in TENSOR_TYPES:
            raise ConfigError(f"{self.file}: {key} has type {name}, which quantlora does not read.")
        return TENSOR_TYPES[name]

    def tensor(self, key: str) -> Tensor:
        """The tensor as stored, in memory of its own."""
        begin, _ = self._header[key]["data_offsets"]
        tensor = torch.empty(self.shape(key), dtype=self.dtype(key))
        data = memoryview(tensor.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
        done = 0
        while done < len(data):  # one read gives 2 GiB at most
            count = os.preadv(self._stream.fileno(), [data[done:]], self._begin + begin + done)
            if not count:
                raise self._damaged(f"it ends within {key}")
            done += count
        return tensor

    def _read_header(self) -> tuple[dict[str, Any], int]:
        try:
            (length,) = struct.unpack("<Q", self._stream.read(8))
            if length > os.path.getsize(self.file) - 8:
                raise ValueError("its header is longer than the file")
            header = json.loads(self._stream.read(length))
            if not isinstance(header, dict):
                raise ValueError("its header is no object")
            if not isinstance(header.get("__metadata__", {}), dict):
                raise ValueError("its metadata are no object")
            return header, 8 + length
        except (struct.error, ValueError, OSError, RecursionError) as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, why: str) -> ConfigError:
        return ConfigError(f"{self.file} is damaged or incomplete: {why}. Copy or save it again.")


def _fault(entry: Any, size: int) -> str:
    """What is wrong with a header's entry in a file with ``size`` bytes of tensors."""
    if not isinstance(entry, dict):
        return "has no entry"
    shape, offsets, name = (entry.get(k) for k in ("shape", "data_offsets", "dtype"))
    if not isinstance(name, str):
        return "has no type"
    if not (_are_sizes(shape) and _are_sizes(offsets) and len(offsets) == 2):
        return "has no shape or place"
    begin, end = offsets
    if not begin <= end <= size:
        return f"lies at bytes {begin} to {end} of {size}"
    dtype = TENSOR_TYPES.get(name)
    if dtype is not None and end - begin != math.prod(shape) * dtype.itemsize:
        return f"has {end - begin} bytes, which is not its shape {tuple(shape)} in {name}"
    return ""


def _are_sizes(numbers: Any) -> TypeGuard[list[int]]:
    return isinstance(numbers, list) and all(
        type(number) is int and number >= 0 for number in numbers
    )
