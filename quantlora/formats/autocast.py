"""Weights are computed in their own dtype, whatever autocast is on around the call."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")


def autocast_off(tensor: Tensor) -> AbstractContextManager[object]:
    """Within the block, products on the device of ``tensor`` are taken as they are written."""
    device = tensor.device.type
    if not torch.amp.is_autocast_available(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def working_dtype(x: Tensor, dtype: torch.dtype) -> torch.dtype:
    """Autocast's dtype where autocast is on for ``x``, else ``dtype``."""
    device = x.device.type
    if device == "meta":  # it has no autocast, and asking is an error
        return dtype
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return dtype


def without_autocast(function: Callable[P, T]) -> Callable[P, T]:
    """``function`` with autocast off on every device where it is on."""

    @wraps(function)
    def exact(*args: P.args, **kwargs: P.kwargs) -> T:
        for device in ("cpu", "cuda", "xpu", "mps"):
            if torch.is_autocast_enabled(device):
                with torch.autocast(device, enabled=False):
                    return exact(*args, **kwargs)  # on the others
        return function(*args, **kwargs)

    return exact
