"""`Mxfp4Linear`: a frozen linear layer whose weight is blocks and their scales."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from quantlora import PackedModule
from quantlora_mxfp4.blocks import BLOCK, unpack


class Mxfp4Linear(PackedModule):
    """``y = x · weightᵀ + bias`` with 4.25 bits for each weight.

    Not an `nn.Linear`: nothing may take its bytes for a float weight. It is made empty, for
    `load_state_dict`; `Mxfp4Quantizer.quantize` makes one from a float layer.

    Args:
        in_features, out_features, bias: as for `nn.Linear`; the bias stays float.
        dtype: that of the float weight and of the bias; follows ``.to(dtype)``.
    """

    blocks: Tensor
    scales: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.dtype = dtype or torch.get_default_dtype()
        shape = (out_features, in_features // BLOCK)
        blocks = torch.empty(*shape, BLOCK // 2, dtype=torch.uint8, device=device)
        self.register_buffer("blocks", blocks)
        self.register_buffer("scales", torch.empty(shape, dtype=torch.uint8, device=device))
        empty = torch.empty(out_features, dtype=self.dtype, device=device) if bias else None
        self.bias = None if empty is None else nn.Parameter(empty, requires_grad=False)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight ``(out_features, in_features)``, rounded to ``dtype`` once; a new tensor."""
        return unpack(self.blocks, self.scales, dtype)

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        y: Tensor = _Product.apply(x, self.blocks, self.scales)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        has_bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={has_bias}"


class _Product(torch.autograd.Function):
    """``x · weightᵀ``; the weight is unpacked again in backward, not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, blocks: Tensor, scales: Tensor) -> Tensor:
        ctx.save_for_backward(blocks, scales)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x, unpack(blocks, scales, x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        blocks, scales = ctx.saved_tensors
        return grad @ unpack(blocks, scales, grad.dtype), None, None
