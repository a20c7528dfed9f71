"""The options of `quantize` for the two formats, read from a layer or given by the user."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from quantlora import BackendError
from quantlora_bnb.cpu_layout import ordinary_state

QUANT_TYPES = ("nf4", "fp4")
BLOCKSIZES = tuple(2**power for power in range(5, 13))


@dataclass(frozen=True)
class Settings4bit:
    """The options of `Bitsandbytes4bit.quantize`; the names are those of `Linear4bit`.

    Args:
        quant_type: ``"nf4"`` or ``"fp4"``.
        blocksize: weights that share a scale, a power of two up to 4096.
        compress_statistics: quantize the scales too (double quantization).
        quant_storage: dtype of the packed tensor; its bits mean the same in all of them.
        compute_dtype: dtype of products; None: that of the input.
    """

    quant_type: str = "nf4"
    blocksize: int = 64
    compress_statistics: bool = True
    quant_storage: torch.dtype = torch.uint8
    compute_dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("quant_type", QUANT_TYPES), ("blocksize", BLOCKSIZES)):
            if getattr(self, name) not in allowed:
                raise BackendError(
                    f"bitsandbytes_4bit: {name} must be one of {', '.join(map(str, allowed))}, "
                    f"got {getattr(self, name)!r}."
                )

    @classmethod
    def of(cls, layer: Any) -> Settings4bit:
        """Those of ``layer``, or what it will be packed with."""
        weight = layer.weight
        state = ordinary_state(layer)
        packed = weight if state is None else state
        return cls(
            packed.quant_type,
            packed.blocksize,
            getattr(weight, "compress_statistics", getattr(packed, "nested", False)),
            getattr(weight, "quant_storage", layer.quant_storage),
            layer.compute_dtype,
        )


@dataclass(frozen=True)
class Settings8bit:
    """The options of `Bitsandbytes8bit.quantize`.

    Args:
        threshold: inputs above it are outliers, which upstream's own forward (and
            `llm_int8`) keeps in floating point; 0 keeps none.
    """

    threshold: float = 0.0

    @classmethod
    def of(cls, layer: Any) -> Settings8bit:
        """Those of ``layer``."""
        return cls(float(layer.state.threshold))


def dtype_name(dtype: torch.dtype | None) -> str | None:
    return None if dtype is None else str(dtype).removeprefix("torch.")
