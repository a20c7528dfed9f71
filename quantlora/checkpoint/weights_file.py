"""``adapter_model.safetensors``: tensors and nothing else. A pickle is never opened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from quantlora.checkpoint.place import PICKLE, WEIGHTS
from quantlora.errors import AdapterFileError

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
#: How a zip archive (torch.save since 1.6), a pickle (protocols 2 to 5) and a tar begin.
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def write_weights(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write ``tensors`` with the metadata that Transformers and PEFT look for."""
    empty = [key for key, tensor in tensors.items() if tensor.numel() == 0]
    if empty:
        raise AdapterFileError(
            f"{file.parent}: {_some(empty)} is empty: the model is sharded. Gather its parameters "
            f"first (Trainer and Accelerate do), or pass the full state_dict."
        )
    save_file(_apart(tensors), file, {"format": "pt"})


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous and each with storage of its own, as the format wants them."""
    plain = {key: tensor.detach().to("cpu").contiguous() for key, tensor in tensors.items()}
    places: set[int] = set()
    for key, tensor in plain.items():
        storage = tensor.untyped_storage()
        if storage.nbytes() != tensor.nbytes or storage.data_ptr() in places:
            plain[key] = tensor.clone()
        places.add(storage.data_ptr())
    return plain


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of the file in ``folder``, each of a float type and finite."""
    file = folder / WEIGHTS
    data = _read(folder)
    # A real file's ninth byte opens its JSON header, whatever its length begins with.
    if data.startswith(_PICKLES) and data[8:9] != b"{":
        raise AdapterFileError(_pickle(file))
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise AdapterFileError(
            f"{file} is damaged or incomplete ({len(data)} bytes): {error}. Copy or save it again."
        ) from error
    _check_values(file, tensors)
    return tensors


def _read(folder: Path) -> bytes:
    """The file's bytes, read at once: a mapped file can change or end while it is used."""
    try:
        return (folder / WEIGHTS).read_bytes()
    except FileNotFoundError:
        if (folder / PICKLE).exists():
            raise AdapterFileError(_pickle(folder / PICKLE)) from None
        raise AdapterFileError(
            f"{folder}: there is no {WEIGHTS}; the adapter is incomplete."
        ) from None
    except OSError as error:
        raise AdapterFileError(f"{folder / WEIGHTS} cannot be read: {error.strerror}") from error


def _pickle(file: Path) -> str:
    return (
        f"{file} is a pickle, and is not opened: a pickle can run any code when it is read. Ask "
        f"its author for {WEIGHTS}, or convert it in a sandbox with "
        f"safetensors.torch.save_file(torch.load(file, weights_only=True), ...)."
    )


def _check_values(file: Path, tensors: Mapping[str, Tensor]) -> None:
    if not tensors:
        raise AdapterFileError(f"{file} holds no tensors.")
    other = {key: t.dtype for key, t in tensors.items() if t.dtype not in _FLOATS}
    if other:
        key, dtype = next(iter(other.items()))
        raise AdapterFileError(f"{file}: {key} has type {dtype}, expected a float type.")
    bad = [key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise AdapterFileError(
            f"{file}: {_some(bad)} holds NaN or infinity: the training diverged, or the file is "
            f"damaged. Use an earlier checkpoint."
        )


def _some(keys: list[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{keys[0]} (and {len(keys) - 1} more)"
