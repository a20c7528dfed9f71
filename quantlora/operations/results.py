"""Facts that must hold, said without ``assert``: ``python -O`` would drop it."""

from __future__ import annotations

import torch
from torch import Tensor


class WrongResultError(AssertionError):
    """An operation gave something else than it has to."""


def hold(fact: bool, otherwise: str) -> None:
    """Raise `WrongResultError` with the text ``otherwise`` unless ``fact`` holds."""
    if not fact:
        raise WrongResultError(otherwise)


def hold_equal(found: Tensor, wanted: Tensor, what: str) -> None:
    """Bit for bit."""
    hold(torch.equal(found, wanted), f"{what} is not the same, bit for bit")


def hold_close(error: float, limit: float, what: str) -> None:
    """NaN is never close."""
    hold(error <= limit, f"{what} by {error:.2g}, more than {limit:.2g}")
