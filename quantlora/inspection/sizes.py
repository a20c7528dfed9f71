"""Bytes per weight in each format, measured by packing a small layer where the library is here."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from quantlora.discovery.registration import registry
from quantlora.formats.flattened import count_bytes
from quantlora.formats.quantizer import Quantizer

#: A multiple of every block and group size in use, and large enough to drown constant tables.
_OUT, _IN = 512, 1024


@dataclass(frozen=True)
class FormatSize:
    """What a weight costs: bytes, scales included; without them where it is not ``measured``."""

    format: str
    bits: int
    bytes_per_weight: float
    measured: bool
    problem: str = ""


def format_sizes() -> list[FormatSize]:
    """All formats that can pack, at all their bit widths, after 32- and 16-bit floats."""
    floats = [
        FormatSize("float32", 32, 4.0, True),
        FormatSize("bfloat16", 16, 2.0, True),
    ]
    packing = [
        quantizer
        for quantizer in registry().quantizers.values()
        if quantizer.can_quantize and quantizer.bits
    ]
    return [*floats, *(size for quantizer in packing for size in _sizes(quantizer))]


def _sizes(quantizer: Quantizer) -> Iterator[FormatSize]:
    problem = quantizer.availability_error()
    for bits in quantizer.bits:
        measured = None if problem else _measure(quantizer, bits)
        cost = bits / 8 if measured is None else measured
        yield FormatSize(quantizer.name, bits, cost, measured is not None, problem)


def _measure(quantizer: Quantizer, bits: int) -> float | None:
    options: dict[str, Any] = {} if quantizer.bits == (bits,) else {"bits": bits}
    linear = nn.Linear(_IN, _OUT, bias=False)
    try:
        with _quiet():
            packed = quantizer.quantize(linear, **options)
    except Exception:  # what cannot be packed here is not measured
        return None
    tensors = [value for value in packed.state_dict().values() if isinstance(value, torch.Tensor)]
    return count_bytes(tensors) / linear.weight.numel()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Libraries have much to say when they are imported, nothing that concerns a size."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
