"""Whether a forward runs under a transform of torch, which needs plain operations."""

from __future__ import annotations

import torch


def transformed() -> bool:
    """Whether `torch.func` (grad, vmap, jvp) or forward-mode differentiation is at work."""
    dual: int = torch.autograd.forward_ad._current_level
    return dual >= 0 or torch._C._are_functorch_transforms_active()
