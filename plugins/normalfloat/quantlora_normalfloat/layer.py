"""`NormalFloatLinear`: a frozen linear layer whose weight is a stream of codes and its scales."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantlora import PackedModule
from quantlora_normalfloat.blocks import unpacked
from quantlora_normalfloat.packing import packed_bytes, unpack
from quantlora_normalfloat.scales import DoubleScales, Scales
from quantlora_normalfloat.tables import QUANT_TYPES


class NormalFloatLinear(PackedModule):
    """``y = x · weightᵀ + bias`` with a weight of ``bits`` bits per element and its scales.

    Not an `nn.Linear`: nothing may take its storage for a float weight. It is made empty, for
    `load_state_dict`; `NormalFloatQuantizer.quantize` makes one from a float layer.

    Args:
        in_features, out_features, bias: as for `nn.Linear`; the bias stays float.
        bits: 2, 3, 4 or 8.
        quant_type: ``"nf"`` or ``"uniform"``; the latter has a float zero-point per block.
        block_size: neighbours along a row that share a scale.
        double_quant: keep the scales in 8 bits.
        ordered: the groups are not neighbours; the codes are stored in the order kept in `order`.
        dtype: that of `weight` and of the bias; follows ``.to(dtype)``. The scales, zero-points
            and levels stay in float32 whatever is asked for.
    """

    packed: Tensor
    levels: Tensor
    zeros: Tensor | None
    order: Tensor | None
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        bits: int = 4,
        quant_type: str = "nf",
        block_size: int = 64,
        double_quant: bool = False,
        ordered: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if quant_type not in QUANT_TYPES:
            raise ValueError(f"quant_type must be one of {QUANT_TYPES}, got {quant_type!r}.")
        self.in_features, self.out_features = in_features, out_features
        self.bits, self.quant_type, self.block_size = bits, quant_type, block_size
        self.double_quant = double_quant
        self.dtype = dtype or torch.get_default_dtype()
        shape = (out_features, -(-in_features // block_size))
        size = packed_bytes(in_features * out_features, bits)
        self.register_buffer("packed", torch.empty(size, dtype=torch.uint8, device=device))
        self.register_buffer("levels", torch.empty(2**bits, device=device))
        zeros = torch.empty(shape, device=device) if quant_type == "uniform" else None
        self.register_buffer("zeros", zeros)
        order = torch.empty(in_features, dtype=torch.int32, device=device) if ordered else None
        self.register_buffer("order", order)
        self.scales = (DoubleScales if double_quant else Scales)(shape, device)
        empty = torch.empty(out_features, dtype=self.dtype, device=device) if bias else None
        self.bias = None if empty is None else nn.Parameter(empty, requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """`dequantize` in `dtype`, under the name that code which knows `nn.Linear` asks for."""
        return self.dequantize(self.dtype)

    def codes(self) -> Tensor:
        """The codes as uint8 ``(out_features, in_features)``."""
        count = self.in_features * self.out_features
        codes = unpack(self.packed, self.bits, count)
        return self._in_order(codes.view(self.out_features, self.in_features))

    def group_index(self) -> Tensor | None:
        """The group of each input ``(in_features,)``; None when groups are neighbours."""
        return None if self.order is None else torch.argsort(self.order) // self.block_size

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight ``(out_features, in_features)``, rounded to ``dtype`` once; a new tensor."""
        shape, scales = (self.out_features, self.in_features), self.scales()
        given = (self.packed, self.levels, scales, self.zeros, shape, self.block_size, dtype)
        return self._in_order(unpacked(*given))

    def _in_order(self, columns: Tensor) -> Tensor:
        """Stored columns, each at the place of its input."""
        return columns if self.order is None else columns[:, torch.argsort(self.order)]

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.dequantize(x.dtype), bias)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, bits={self.bits}, quant_type={self.quant_type}, "
            f"block_size={self.block_size}, double_quant={self.double_quant}"
        )


def settings(layer: NormalFloatLinear) -> dict[str, Any]:
    """The keyword arguments that make a layer of the same format."""
    names = ("bits", "quant_type", "block_size", "double_quant")
    return {name: getattr(layer, name) for name in names}
