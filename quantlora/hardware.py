"""What the hardware is good at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def multiplies_bfloat16(device: torch.device | str = "cpu") -> bool:
    """Whether ``device`` has instructions for products of bfloat16; emulation is slower."""
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    describe: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
    facts = describe()  # of newer torches; older ones do not say
    return bool(facts.get("avx512_bf16") or facts.get("amx_bf16"))
