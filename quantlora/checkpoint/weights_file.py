"""``adapter_model.safetensors``: tensors and nothing else. A pickle is never opened."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from quantlora.checkpoint.keys import split_key
from quantlora.checkpoint.location import PICKLE, WEIGHTS, own_file
from quantlora.errors import AdapterFileError
from quantlora.files.safetensors_file import write_tensors

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_WHOLE = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
#: How a zip archive (torch.save since 1.6), a pickle (protocols 2 to 5) and a tar begin.
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
#: What safetensors itself allows for the header, in bytes.
_LONGEST_HEADER = 100_000_000


def write_weights(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write ``tensors`` with the metadata that Transformers and PEFT look for."""
    # What sharding leaves behind has no shape; a layer of no outputs has factors of one.
    empty = [key for key, tensor in tensors.items() if tensor.numel() == 0 and tensor.dim() < 2]
    if empty:
        raise AdapterFileError(
            f"{file.parent}: {_some(empty)} is empty: the model is sharded. Gather its parameters "
            f"first (Trainer and Accelerate do), or pass the full state_dict."
        )
    write_tensors(file, _apart(tensors))


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous and each with storage of its own, as the format wants them."""
    plain = {key: tensor.detach().to("cpu").contiguous() for key, tensor in tensors.items()}
    seen: set[int] = set()
    for key, tensor in plain.items():
        storage = tensor.untyped_storage()
        if storage.nbytes() != tensor.nbytes or storage.data_ptr() in seen:
            plain[key] = tensor.clone()
        seen.add(storage.data_ptr())
    return plain


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of the file in ``folder``, as `check_values` wants them."""
    data = _read(folder)
    file = folder / WEIGHTS
    try:
        tensors = load(data)
    except _DAMAGES as error:
        raise _damaged(file, len(data), error) from error
    check_values(str(file), tensors)
    return tensors


#: What a damaged file makes its readers raise.
_DAMAGES = (
    SafetensorError, ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError,
    OverflowError, RecursionError, MemoryError,
)  # fmt: skip


def _damaged(file: Path, size: int, why: object) -> AdapterFileError:
    return AdapterFileError(
        f"{file} is damaged or incomplete ({size} bytes): {why}. Copy or save it again."
    )


def _read(folder: Path) -> bytes:
    """The file's bytes, read at once: a mapped file can change or end while it is used."""
    try:
        with own_file(folder, WEIGHTS).open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            try:
                _check_size(folder / WEIGHTS, stream, size)
                return stream.read()
            except _DAMAGES as error:
                raise _damaged(folder / WEIGHTS, size, error) from error
    except FileNotFoundError:
        if (folder / PICKLE).exists():
            raise AdapterFileError(_pickle(folder / PICKLE)) from None
        raise AdapterFileError(
            f"{folder}: there is no {WEIGHTS}; the adapter is incomplete."
        ) from None
    except OSError as error:
        if isinstance(error, AdapterFileError):
            raise
        raise AdapterFileError(f"{folder / WEIGHTS} cannot be read: {error.strerror}") from error


def _check_size(file: Path, stream: BinaryIO, size: int) -> None:
    """Raise where the file is a pickle, or not as long as its header says; then go back to 0.

    Before all of it is read: a file with a hole can say to be larger than the memory.
    """
    begin = stream.read(9)
    # A real file's ninth byte opens its JSON header, whatever its length begins with.
    if begin.startswith(_PICKLES) and begin[8:] != b"{":
        raise AdapterFileError(_pickle(file))
    length = int.from_bytes(begin[:8], "little")
    if length > min(size - 8, _LONGEST_HEADER):
        raise ValueError(f"its header of {length} bytes is not there")
    stream.seek(8)
    header = json.loads(stream.read(length))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    if 8 + length + max(ends, default=0) != size:
        raise ValueError("its size is not what its header says")
    stream.seek(0)


def _pickle(file: Path) -> str:
    return (
        f"{file} is a pickle, and is not opened: a pickle can run any code when it is read. Ask "
        f"its author for {WEIGHTS}, or convert it in a sandbox with "
        f"safetensors.torch.save_file(torch.load(file, weights_only=True), ...)."
    )


def check_values(source: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise `AdapterFileError` unless ``tensors`` are finite floats.

    Modules trained in full may have whole numbers too: BatchNorm counts its batches.
    """
    if not tensors:
        raise AdapterFileError(f"{source} holds no tensors.")
    for key, tensor in tensors.items():
        kind = tensor.dtype if isinstance(tensor, Tensor) else f"of {type(tensor).__name__}"
        if kind not in (_FLOATS if split_key(key)[0] else (*_FLOATS, *_WHOLE)):
            raise AdapterFileError(f"{source}: {key} has type {kind}, expected a float type.")
    bad = [key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise AdapterFileError(
            f"{source}: {_some(bad)} holds NaN or infinity: the training diverged, or the file is "
            f"damaged. Use an earlier checkpoint."
        )


def _some(keys: list[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{keys[0]} (and {len(keys) - 1} more)"
