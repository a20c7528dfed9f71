"""What a LoRA layer says of the frozen layer inside it: its shape, its other attributes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from quantlora.formats.offloaded import onloaded

if TYPE_CHECKING:
    from quantlora.formats.quantizer import Quantizer


class BaseFacts:
    """Asked of ``base_layer`` through its format."""

    base_layer: nn.Module
    quantizer: Quantizer
    bases_before_merge: list[tuple[nn.Module, Quantizer]]

    @property
    def out_features(self) -> int:
        return self.quantizer.shape(self.base_layer)[0]

    @property
    def in_features(self) -> int:
        return self.quantizer.shape(self.base_layer)[1]

    @property
    def base_bias(self) -> Tensor | None:
        """The frozen layer's bias."""
        return self.quantizer.bias(self.base_layer)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The base's weight ``(out_features, in_features)``; by default in its own dtype."""
        with onloaded(self.base_layer):
            if dtype is None:
                return self.quantizer.dequantize(self.base_layer)
            return self.quantizer.dequantize_to(self.base_layer, dtype)

    @property
    def plain_base(self) -> tuple[nn.Module, Quantizer]:
        """The base from before any merge, and its format."""
        return (
            self.bases_before_merge[-1]
            if self.bases_before_merge
            else (self.base_layer, self.quantizer)
        )

    def __getattr__(self, name: str) -> Any:
        """What models read of a layer besides: ``padding_idx``, ``nf``, their own attributes."""
        try:
            return super().__getattr__(name)  # type: ignore[misc]
        except AttributeError:
            base = self.__dict__.get("_modules", {}).get("base_layer")
            if base is None or name.startswith("_"):
                raise
        return getattr(base, name)
