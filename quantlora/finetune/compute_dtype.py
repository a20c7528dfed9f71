"""What a run computes in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from quantlora.finetune.option_fields import Dtype


def compute_dtype(choice: Dtype) -> torch.dtype:
    """The dtype asked for; `auto` is bfloat16 only where the hardware multiplies it."""
    if choice is not Dtype.AUTO:
        dtype: torch.dtype = getattr(torch, choice.value)
        return dtype
    return torch.bfloat16 if _multiplies_bfloat16() else torch.float32


def _multiplies_bfloat16() -> bool:
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    describe: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
    facts = describe()  # of newer torches; older ones compute in float32
    return bool(facts.get("avx512_bf16") or facts.get("amx_bf16"))
