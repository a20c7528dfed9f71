"""In which dtype an adapter's products ``x · Aᵀ`` and ``h · Bᵀ`` are taken while it is trained.

A and B are kept in float32. Where the input is in half precision their products are taken in its
dtype, as autocast does, and summed in float32 by the kernel: the sum with the base's product is
rounded to that dtype anyway. The parameters, their gradients and the optimizer stay in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantlora.errors import ConfigError
from quantlora.formats.autocast import working_dtype

HALF = (torch.bfloat16, torch.float16)
_CHOICES = ("input", "float32")
_chosen = "input"


def adapter_products(dtype: str | None = None) -> str:
    """In which dtype the products of adapters are taken in training, in this process.

    Args:
        dtype: from now on, where it is given. ``"input"``: that of a layer's input where it is
            bfloat16 or float16, and A's otherwise. ``"float32"``: always A's, which is float32
            unless `wrap` was told otherwise; slower, for comparisons with PEFT outside autocast.
            Under autocast it is autocast's in both.

    Raises:
        ConfigError: another ``dtype``.
    """
    global _chosen
    if dtype is not None:
        if dtype not in _CHOICES:
            raise ConfigError(f"adapter_products: dtype must be one of {_CHOICES}, got {dtype!r}.")
        _chosen = dtype
    return _chosen


def product_dtype(x: Tensor, own: torch.dtype) -> torch.dtype:
    """That of products of ``x`` with an adapter whose tensors are in ``own``."""
    if own == torch.float32 and x.dtype in HALF and _chosen == "input":
        own = x.dtype
    return working_dtype(x, own)
