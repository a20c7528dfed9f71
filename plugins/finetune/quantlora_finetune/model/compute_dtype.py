"""What a run computes in."""

from __future__ import annotations

import torch

from quantlora import multiplies_bfloat16
from quantlora_finetune.options.choices import Dtype


def compute_dtype(choice: Dtype) -> torch.dtype:
    """The dtype asked for; `auto` is bfloat16 only where the hardware multiplies it."""
    if choice is not Dtype.AUTO:
        dtype: torch.dtype = getattr(torch, choice.value)
        return dtype
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.bfloat16 if multiplies_bfloat16(device) else torch.float32
