"""Writing a safetensors file tensor by tensor: only one of them need be in memory."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from quantlora.files.safetensors_file import TENSOR_TYPES

_NAMES = {dtype: name for name, dtype in TENSOR_TYPES.items()}


@dataclass(frozen=True)
class TensorSource:
    """A tensor that is read when it is written; ``shape`` and ``dtype`` are known before."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @classmethod
    def of(cls, tensor: Tensor) -> TensorSource:
        return cls(tuple(tensor.shape), tensor.dtype, lambda: tensor)

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def stream_tensors(
    file: Path, tensors: Mapping[str, TensorSource], metadata: Mapping[str, str] | None = None
) -> None:
    """Write ``tensors`` by their names, each read once, in turn; the same bytes every time.

    Args:
        metadata: more texts for the file's header.

    Raises:
        OSError: the system refuses.
    """
    # Wide dtypes first, as safetensors does: each tensor begins at a multiple of its items' size.
    order = dict(sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize))
    with file.open("wb") as stream:
        stream.write(_header(order, metadata or {}))
        for source in order.values():
            flat = source.read().detach().to("cpu").contiguous().reshape(-1)
            stream.write(flat.view(torch.uint8).numpy().data)


def _header(tensors: Mapping[str, TensorSource], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for name, source in tensors.items():
        begin, end = end, end + source.nbytes
        entries[name] = {
            "dtype": _NAMES[source.dtype],
            "shape": list(source.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
