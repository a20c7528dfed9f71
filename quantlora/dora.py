"""DoRA: magnitude and direction of each output row are trained apart (arXiv:2402.09353, eq. 5).

    W' = m · (W + sBA) / ‖W + sBA‖        the norm over each row, taken as a constant (section 4.3)

As a sum over adapters, each adds ``g · (W + sBA) - W`` with ``g = m / ‖W + sBA‖``, so the output
depends only on which adapters are active. The norm needs no second dequantization and no matrix
of the weight's size:

    ‖Wᵢ + sBᵢA‖² = ‖Wᵢ‖² + 2s Bᵢ·(W Aᵢᵀ) + s² Bᵢ (A Aᵀ) Bᵢᵀ
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor, nn

from quantlora.autograd import frozen_linear
from quantlora.linear import LoraLinear

if TYPE_CHECKING:
    from quantlora.config import LoraConfig
    from quantlora.quantizer import Quantizer


class _Magnitude(nn.Module):
    """Holds m ``(out_features,)`` as ``.weight``, where PEFT's state dict has it."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)


class DoraLinear(LoraLinear):
    """DoRA on a linear layer; adapters of this layer without a magnitude are plain LoRA."""

    variant: ClassVar[str] = "dora"

    def __init__(self, base_layer: nn.Module, quantizer: Quantizer, path: str) -> None:
        super().__init__(base_layer, quantizer, path)
        self.lora_magnitude_vector = nn.ModuleDict()
        self._base_squares: tuple[nn.Module, Tensor] | None = None

    def forward_weight(self) -> Tensor | None:
        return self.dequantize() if self.lora_magnitude_vector else None

    def delta(self, name: str, x: Tensor, product: Tensor, weight: Tensor | None) -> Tensor:
        lora = super().delta(name, x, product, weight)
        if weight is None or name not in self.lora_magnitude_vector:
            return lora
        gain = self._gain(name, weight)
        if self.drops(name):
            product = frozen_linear(x.to(product.dtype), self.dequantize, weight)
        return (gain - 1).to(product.dtype) * product + gain.to(lora.dtype) * lora

    def delta_weight(self, name: str, weight: Tensor) -> Tensor:
        lora = super().delta_weight(name, weight)
        if name not in self.lora_magnitude_vector:
            return lora
        gain = self._gain(name, weight)[:, None]
        return (gain - 1) * weight.to(lora.dtype) + gain * lora

    def delta_bias(self, name: str, weight: Tensor) -> Tensor | None:
        bias = super().delta_bias(name, weight)
        if bias is None or name not in self.lora_magnitude_vector:
            return bias
        return self._gain(name, weight) * bias

    def _gain(self, name: str, weight: Tensor) -> Tensor:
        """``m / ‖W + sBA‖`` by row; the gradient reaches m alone."""
        return self._magnitude(name) / self._norm(name, weight)

    def _magnitude(self, name: str) -> nn.Parameter:
        return cast(_Magnitude, self.lora_magnitude_vector[name]).weight

    @torch.no_grad()
    def _norm(self, name: str, weight: Tensor) -> Tensor:
        A, B = (factor.weight for factor in self.factors(name))
        s = self.scaling[name]
        cross = B * (weight @ A.t().to(weight.dtype)).to(A.dtype)
        square = B * (B @ (A @ A.t()))
        return (self._squares(weight).to(A.dtype) + (2 * s * cross + s * s * square).sum(1)).sqrt()

    def _squares(self, weight: Tensor) -> Tensor:
        """``‖Wᵢ‖²``, kept for as long as the base stays the same object."""
        kept = self._base_squares
        if kept is None or kept[0] is not self.base_layer or kept[1].device != weight.device:
            wide = torch.promote_types(weight.dtype, torch.float32)
            kept = (self.base_layer, weight.to(wide).square().sum(1))
            self._base_squares = kept
        return kept[1]

    # -- the books: the magnitude is one more parameter of the adapter

    def finish_adapter(self, name: str, config: LoraConfig) -> None:
        """Start at m = ‖W + sBA‖, where the update is that of plain LoRA."""
        if config.variant == self.variant:
            self.lora_magnitude_vector[name] = _Magnitude(self._norm(name, self.dequantize()))

    def remove_adapter(self, name: str) -> None:
        super().remove_adapter(name)
        if name in self.lora_magnitude_vector:
            del self.lora_magnitude_vector[name]

    def adapter_tensors(self, name: str) -> dict[str, nn.Parameter]:
        tensors = super().adapter_tensors(name)
        if name in self.lora_magnitude_vector:
            tensors["lora_magnitude_vector"] = self._magnitude(name)
        return tensors
