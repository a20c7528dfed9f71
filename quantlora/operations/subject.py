"""What the operations are tried on: layers of one format, and fields for their adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from quantlora.layers.linear import LoraLinear
from quantlora.operations.results import hold


class OneLayerModel(nn.Module):
    """The smallest model: one layer, at the path ``proj``."""

    def __init__(self, proj: nn.Module) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.proj(x)
        return y

    @property
    def lora(self) -> LoraLinear:
        hold(isinstance(self.proj, LoraLinear), f"wrap() left a {type(self.proj).__name__}")
        return self.proj  # type: ignore[return-value]


class Subject(Protocol):
    """A format, a variant or an initializer under test."""

    @property
    def quantizer(self) -> str:
        """The name of the format that the wrapped layers have."""

    @property
    def biases(self) -> tuple[bool, ...]:
        """Whether a layer of the format can be with, and without, a bias."""

    @property
    def tolerances(self) -> Mapping[torch.dtype, float]:
        """Largest relative error of outputs and gradients, by the dtype of products."""

    @property
    def closeness(self) -> float:
        """Largest relative error (Frobenius) that packing may make."""

    def layer(self, *, bias: bool | None = None, dtype: torch.dtype | None = None) -> nn.Module:
        """A new layer with random values."""

    def fields(self, adapter: str) -> Mapping[str, Any]:
        """Arguments of `wrap` for that adapter, ``default`` being the first one of its model."""
