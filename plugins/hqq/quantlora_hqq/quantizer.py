"""The quantizer ``hqq`` (Badri and Shaji 2023, mobiusml.github.io/hqq_blog)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from quantlora import AffineWeight, BackendError, InferenceCopy, Quantizer, dense_copy
from quantlora_hqq.layer import check, dequantize, from_affine, pack, repack, to_affine
from quantlora_hqq.requires import HQQ


class HqqQuantizer(Quantizer):
    """Any axis and group size; QA-LoRA merges exactly within the format."""

    name: ClassVar[str] = "hqq"
    module: ClassVar[str] = "hqq"
    requires = (HQQ,)
    bits: ClassVar[tuple[int, ...]] = (2, 3, 4, 8)
    preference: ClassVar[int] = -5

    def layer_types(self) -> tuple[type[nn.Module], ...]:
        from hqq.core.quantize import HQQLinear

        return (HQQLinear,)

    def matches(self, layer: Any) -> bool:
        known = isinstance(layer, self.layer_types())
        return known and getattr(layer, "meta", None) is not None

    def dequantize(self, layer: nn.Module) -> Tensor:
        return dequantize(layer)

    def inference_copy(self, layer: nn.Module, dtype: torch.dtype) -> InferenceCopy:
        return dense_copy(partial(self.dequantize_to, layer, dtype), self.shape(layer), dtype)

    def weight_tensors(self, layer: Any) -> Iterable[Tensor]:
        return (layer.W_q, layer.meta["scale"], layer.meta["zero"])

    def prepare(self, layer: nn.Module, path: str) -> None:
        check(layer, path)

    @torch.no_grad()
    def quantize(
        self,
        linear: nn.Linear,
        like: nn.Module | None = None,
        *,
        bits: int = 4,
        group_size: int | None = 64,
        axis: int = 1,
        **options: Any,
    ) -> nn.Module:
        """Pack by the library's own solver.

        Args:
            like: a layer whose bits, groups, axis and dtype are taken.
            bits: 2, 3, 4 or 8.
            group_size: weights that share a scale, a multiple of 8; None: a whole row or column.
            axis: 1: groups along a row; 0: across rows.
        """
        if like is not None:
            return repack(linear, like)
        size = group_size or linear.weight.shape[axis]
        if linear.weight.numel() % size or size % 8:
            shape = " x ".join(map(str, linear.weight.shape))
            raise BackendError(
                f"hqq: groups of {size} do not divide a weight of {shape} by eights."
            )
        return pack(linear, bits, size, axis)

    def shape(self, layer: Any) -> tuple[int, int]:
        rows, columns = layer.meta["shape"]
        return int(rows), int(columns)

    def device(self, layer: Any) -> torch.device:
        return layer.W_q.device  # type: ignore[no-any-return]

    def group_size(self, layer: Any) -> int | None:
        affine = to_affine(layer)
        return None if affine is None else affine.group_size

    def affine(self, layer: nn.Module) -> AffineWeight | None:
        return to_affine(layer)

    def from_affine(self, weight: AffineWeight, bias: Tensor | None) -> nn.Module:
        return from_affine(weight, bias)

    def describe(self, layer: Any) -> dict[str, Any]:
        meta = layer.meta
        return {"bits": meta["nbits"], "group_size": meta["group_size"], "axis": meta["axis"]}
