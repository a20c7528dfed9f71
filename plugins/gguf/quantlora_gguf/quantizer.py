"""The quantizer ``gguf``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from quantlora import (
    AffineWeight,
    BackendError,
    InferenceCopy,
    Quantizer,
    dense_copy,
)
from quantlora_gguf.affine import group_size, to_affine
from quantlora_gguf.layer import GgufLinear, settings
from quantlora_gguf.packing import BY_BITS, packed_linear
from quantlora_gguf.requires import GGUF


class GgufQuantizer(Quantizer):
    """Reads `GgufLinear` in every type of `BLOCK_TYPES`, and packs them."""

    name: ClassVar[str] = "gguf"
    module: ClassVar[str] = "quantlora_gguf.layer"
    requires = (GGUF,)
    bits: ClassVar[tuple[int, ...]] = tuple(BY_BITS)
    options: ClassVar[tuple[str, ...]] = ("block_type",)
    # Blocks of 256 do not fit every width: behind formats that take any, where we choose.
    preference: ClassVar[int] = -1

    def layer_types(self) -> tuple[type[nn.Module], ...]:
        return (GgufLinear,)

    def dequantize(self, layer: nn.Module) -> Tensor:
        return _own(layer).dequantize()

    def dequantize_to(self, layer: nn.Module, dtype: torch.dtype) -> Tensor:
        return _own(layer).dequantize(dtype)

    @torch.no_grad()
    def quantize(
        self, linear: nn.Linear, like: nn.Module | None = None, **options: Any
    ) -> nn.Module:
        """Pack ``linear``.

        Args:
            like: take the block type of this layer, its dtype too.
            options: ``bits`` 2 (Q2_K), 3 (Q3_K), 4 (default, Q4_0), 5 (Q5_0), 6 (Q6_K) or 8
                (Q8_0), or ``block_type`` by name.

        Raises:
            BackendError: other bits, an unknown type, a row that is no multiple of the block, or a
                weight that is not finite. MissingLibraryError: no ``gguf``.
        """
        if like is not None:
            own = _own(like)
            return packed_linear(linear, own.block_type, "weight", own)
        return packed_linear(linear, _block_type("weight", **options), "weight")

    @torch.no_grad()
    def quantize_layers(
        self, model: nn.Module, layers: Mapping[str, nn.Linear], **options: Any
    ) -> dict[str, nn.Module]:
        """As `quantize` for each layer; errors name its path."""
        return {
            path: packed_linear(linear, _block_type(path, **options), path)
            for path, linear in layers.items()
        }

    def inference_copy(self, layer: nn.Module, dtype: torch.dtype) -> InferenceCopy:
        return dense_copy(partial(_own(layer).dequantize, dtype), self.shape(layer), dtype)

    def group_size(self, layer: nn.Module) -> int | None:
        return group_size(_own(layer))

    def affine(self, layer: nn.Module) -> AffineWeight | None:
        return to_affine(_own(layer))

    def packed_parameter(self, layer: nn.Module) -> Tensor | None:
        return _own(layer).weight

    def describe(self, layer: nn.Module) -> dict[str, Any]:
        return {"bits": _own(layer).kind.bits, **settings(_own(layer))}


def _own(layer: nn.Module) -> GgufLinear:
    assert isinstance(layer, GgufLinear)
    return layer


def _block_type(where: str, bits: int | None = None, block_type: str | None = None) -> str:
    if block_type is not None:
        return block_type
    if bits is not None and bits not in BY_BITS:
        offered = ", ".join(f"{bits} ({name})" for bits, name in BY_BITS.items())
        raise BackendError(f"{where}: backend 'gguf' packs {offered} bits, not {bits}.")
    return BY_BITS[bits or 4]
