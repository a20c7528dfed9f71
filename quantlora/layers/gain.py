"""DoRA's ``y = g · u`` by output, in u's own memory, with what backward needs in y's.

    ∂u = g · ∂y        ∂g = Σ ∂y · u = Σ ∂y · y / g        summed over tokens

So u is not kept: y is, which the next operation often keeps anyway. There the gain is ``1 + d``
with d in u's dtype: magnitudes start at the norms, so gains are near 1. Where y may not do (a gain
near 0, float16) u is kept, and where y was changed in place u is computed again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quantlora.layers.fused import output_again

#: Tokens whose product with the gradient is summed at a time: it stays in cache.
_TOKENS = 64
#: From this on ``1 + d`` has no greater relative error than d.
_LEAST_GAIN = 0.5


def scaled_by_gain(u: Tensor, gain: Tensor) -> Tensor:
    """``gain · u`` in the memory of ``u``.

    Args:
        u: ``(..., out_features)``, from `adapted_linear`, and nobody else's.
        gain: ``(out_features,)``.
    """
    change = (gain - 1).to(u.dtype)
    if not _divides(change):
        return (u * gain.to(_wide(u))).to(u.dtype)
    if torch.is_grad_enabled() and not u.requires_grad:  # nothing to compute it again from
        return torch.addcmul(u, u, change)
    y: Tensor = _Scaled.apply(u, change)  # type: ignore[no-untyped-call]
    return y


def _divides(change: Tensor) -> bool:
    """Whether u is ``y / gain``; not asked of an accelerator, which would have to wait."""
    if change.device.type != "cpu" or change.dtype == torch.float16 or not change.numel():
        return False
    return bool((1 + change.detach()).abs().min() >= _LEAST_GAIN)


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, change: Tensor) -> Tensor:
        u.addcmul_(u, change)
        ctx.mark_dirty(u)
        ctx.change = change.detach()
        ctx.save_for_backward(u, change)
        return u

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        try:
            y, change = ctx.saved_tensors
        except RuntimeError as error:
            if "inplace operation" not in str(error):
                raise
            u, change = output_again(ctx.next_functions[0][0]), ctx.change
            return torch.addcmul(grad, grad, change), _summed(grad, u).to(change.dtype)
        own = _summed(grad, y) / (1 + change.to(_wide(y)))
        return torch.addcmul(grad, grad, change), own.to(change.dtype)


def _summed(grad: Tensor, y: Tensor) -> Tensor:
    """``Σ grad · y`` over all but the last dimension, in float32 or better."""
    rows = [torch.split(t.reshape(-1, t.shape[-1]), _TOKENS) for t in (grad, y)]
    parts = [(g * v).sum(0, dtype=_wide(y)) for g, v in zip(*rows, strict=True)]
    return torch.stack(parts).sum(0)


def _wide(y: Tensor) -> torch.dtype:
    return torch.promote_types(y.dtype, torch.float32)
