"""The two products of a LoRA layer, each with the backward this project exists for.

    y  = x · dequantize(Q)ᵀ + bias + s · B(A(x))

`frozen_linear` is the first term. It saves no tensor at all: its backward asks the layer for its
weight again, because a dequantized weight would cost 16 bits per element until backward, and
because FSDP may have sharded and gathered the layer in between. It never runs an upstream
kernel's autograd. Under `torch.compile` a checkpoint says the same to the compiler.

`low_rank` is the last term. It saves x as it came (not a float32 copy) and s · A(x), of rank r.

Under `torch.func` and forward-mode differentiation both are the plain products, which torch knows
all rules for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from quantlora.formats.autocast import working_dtype
from quantlora.formats.transforms import transformed
from quantlora.layers.product_dtype import product_dtype

#: Gives a frozen weight ``(out_features, in_features)`` in the dtype asked for.
Weight = Callable[[torch.dtype], Tensor]


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Weight, dequantized: Tensor | None) -> Tensor:
        ctx.weight = weight
        return F.linear(x, weight(x.dtype) if dequantized is None else dequantized.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad @ ctx.weight(grad.dtype), None, None


class _LowRank(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, A: Tensor, B: Tensor, scaling: float | Tensor, dtype: torch.dtype
    ) -> Tensor:
        h = F.linear(x.to(dtype), A.to(dtype)) * scaling
        ctx.save_for_backward(x, h, A, B)
        ctx.scaling = scaling
        return F.linear(h, B.to(dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, h, A, B = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second backward: h must depend on x and A again
            h = F.linear(x.to(h.dtype), A.to(h.dtype)) * ctx.scaling
        g = grad.to(h.dtype)
        gh = g @ B.to(h.dtype) * ctx.scaling
        need_x, need_A, need_B = ctx.needs_input_grad[:3]
        grad_x = (gh @ A.to(h.dtype)).to(x.dtype) if need_x else None
        grad_A = _rows(gh).t() @ _rows(x.to(h.dtype)) if need_A else None
        grad_B = _rows(g).t() @ _rows(h) if need_B else None
        return grad_x, _like(grad_A, A), _like(grad_B, B), None, None


def _rows(x: Tensor) -> Tensor:
    """(..., n) as (N, n), also for n = 0."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _like(grad: Tensor | None, parameter: Tensor) -> Tensor | None:
    return None if grad is None else grad.to(parameter.dtype)


def frozen_linear(x: Tensor, weight: Weight, dequantized: Tensor | None = None) -> Tensor:
    """``x · weightᵀ`` for a weight that is never trained.

    Args:
        x: ``(..., in_features)``, in the dtype the product is to be taken in.
        weight: gives ``(out_features, in_features)`` in x's dtype; called again in backward.
        dequantized: the same matrix, where the caller has it for the forward already.
    """
    if torch.compiler.is_compiling():
        return recomputed(lambda x: F.linear(x, weight(x.dtype)), x)
    if transformed():
        return F.linear(x, weight(x.dtype) if dequantized is None else dequantized.to(x.dtype))
    product: Tensor = _FrozenLinear.apply(x, weight, dequantized)  # type: ignore[no-untyped-call]
    return product


def recomputed(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``function(x)``, where ``function`` dequantizes a weight.

    `torch.compile` traces forward and backward into one graph, would see that both dequantize the
    same weight, do so once, and keep the float weight in between. A checkpoint tells it not to.
    """
    traced = torch.compiler.is_compiling() and torch.is_grad_enabled() and x.requires_grad
    y: Tensor = checkpoint(function, x, use_reentrant=False) if traced else function(x)
    return y


def add_low_rank(y: Tensor, x: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """`low_rank` added to ``y`` ``(..., out)`` in place, rounded once: for inference."""
    dtype = working_dtype(x, A.dtype)
    if A.dtype != dtype or B.dtype != dtype:
        A, B = A.to(dtype), B.to(dtype)
    return y.add_(F.linear(F.linear(x.to(dtype), A), B), alpha=scaling)


def low_rank(
    x: Tensor, A: Tensor, B: Tensor, scaling: float | Tensor, dtype: torch.dtype | None = None
) -> Tensor:
    """``scaling · x · Aᵀ · Bᵀ`` for x ``(..., in)``, A ``(r, in)``, B ``(out, r)``.

    Computed in ``dtype``, by default that of `product_dtype`.
    """
    dtype = dtype or product_dtype(x, A.dtype)
    if not torch.is_grad_enabled() or transformed():
        return F.linear(F.linear(x.to(dtype), A.to(dtype)) * scaling, B.to(dtype))
    product: Tensor = _LowRank.apply(x, A, B, scaling, dtype)  # type: ignore[no-untyped-call]
    return product
