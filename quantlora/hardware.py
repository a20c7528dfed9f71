"""What the hardware has, and what it is good at; torch is imported when that is asked."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def multiplies_bfloat16(device: torch.device | str = "cpu") -> bool:
    """Whether ``device`` has instructions for products of bfloat16; emulation is slower."""
    import torch

    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    describe: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
    facts = describe()  # of newer torches; older ones do not say
    return bool(facts.get("avx512_bf16") or facts.get("amx_bf16"))


def physical_memory() -> int | None:
    """The machine's memory in bytes; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
