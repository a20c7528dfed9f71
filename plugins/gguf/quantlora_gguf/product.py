"""Products with packed rows, some at a time: a vocabulary's weight is never whole in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from quantlora_gguf.block_types import BlockType

#: Weights unpacked for one product, 64 MB in float32.
_CHUNK = 1 << 24


def packed_product(x: Tensor, packed: Tensor, kind: BlockType) -> Tensor:
    """``x @ Wᵀ`` for ``x`` ``(..., in_features)``; the gradient is that of ``x`` alone.

    Nothing is kept for backward but the packed rows, which are unpacked again there.
    """
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):
        y: Tensor = _PackedProduct.apply(x, packed, kind)  # type: ignore[no-untyped-call]
    return y


class _PackedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, kind: BlockType) -> Tensor:
        ctx.save_for_backward(packed)
        ctx.kind = kind
        pieces = [F.linear(x, kind.dequantize(part, x.dtype)) for part in _parts(packed, kind)]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        (packed,), kind = ctx.saved_tensors, ctx.kind
        if not ctx.needs_input_grad[0]:
            return None, None, None
        exact = torch.promote_types(grad.dtype, torch.float32)
        total = grad.new_zeros(*grad.shape[:-1], kind.row_elements(packed.shape[1]), dtype=exact)
        start = 0
        for part in _parts(packed, kind):
            total += grad[..., start : start + len(part)] @ kind.dequantize(part, grad.dtype)
            start += len(part)
        return total.to(grad.dtype), None, None


def _parts(packed: Tensor, kind: BlockType) -> Iterator[Tensor]:
    width = max(1, kind.row_elements(packed.shape[1]))
    yield from torch.split(packed, max(1, _CHUNK // width))
