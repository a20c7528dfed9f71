"""`Target`: one layer that is going to have an adapter."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Target:
    """One layer to wrap: its ``path``, the ``layer``, and its own rank and alpha.

    With ``parameters``, only those parameters of it get an adapter (``target_parameters``);
    with ``tokens`` only the rows of those (``trainable_token_indices``).
    """

    path: str
    layer: nn.Module
    r: int
    lora_alpha: float
    parameters: tuple[str, ...] = ()
    tokens: tuple[int, ...] = ()
