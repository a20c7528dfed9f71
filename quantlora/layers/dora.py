"""DoRA: magnitude and direction of each output row are trained apart (arXiv:2402.09353, eq. 5).

    W' = m · (W + sBA) / ‖W + sBA‖        the norm over each row, taken as a constant (section 4.3)

As a sum over adapters, each adds ``g · (W + sBA) - W`` with ``g = m / ‖W + sBA‖``, so the output
depends only on which adapters are active. The norm needs no second dequantization and no matrix
of the weight's size:

    ‖Wᵢ + sBᵢA‖² = ‖Wᵢ‖² + 2s Bᵢ·(W Aᵢᵀ) + s² Bᵢ (A Aᵀ) Bᵢᵀ
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from quantlora.formats.offloaded import at_hand
from quantlora.layers.autograd import frozen_linear, recomputed
from quantlora.layers.linear import LoraLinear

if TYPE_CHECKING:
    from quantlora.config.lora_config import LoraConfig
    from quantlora.formats.quantizer import Quantizer


class _Magnitude(nn.Module):
    """Holds m ``(out_features,)`` as ``.weight``, where PEFT's state dict has it."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)


class DoraLinear(LoraLinear):
    """DoRA on a linear layer; adapters of this layer without a magnitude are plain LoRA.

    What is merged is one summand, over the base as it was before: an adapter that is not merged
    refers to that base too.
    """

    variant: ClassVar[str] = "dora"

    def __init__(self, base_layer: nn.Module, quantizer: Quantizer, path: str) -> None:
        super().__init__(base_layer, quantizer, path)
        self.lora_magnitude_vector = nn.ModuleDict()
        self._base_squares: tuple[nn.Module, Tensor] | None = None

    def forward_weight(self) -> Tensor | None:
        if self.merged or not self.lora_magnitude_vector or torch.compiler.is_compiling():
            return None
        return self.dequantize()

    def delta(self, name: str, x: Tensor, product: Tensor, weight: Tensor | None) -> Tensor:
        lora = super().delta(name, x, product, weight)
        if name not in self.lora_magnitude_vector:
            return lora
        gain = self._gain(name, weight)
        if self.drops(name) or self.merged:
            product = frozen_linear(x.to(product.dtype), self._plain_weight, weight)
        return (gain - 1).to(product.dtype) * product + gain.to(lora.dtype) * lora

    def _plain_weight(self, dtype: torch.dtype | None = None) -> Tensor:
        """The base from before any merge: what every adapter's update refers to."""
        base, quantizer = self.plain_base
        with at_hand(base):
            if dtype is None:
                return quantizer.dequantize(base)
            return quantizer.dequantize_to(base, dtype)

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

    def _gain(self, name: str, weight: Tensor | None) -> Tensor:
        """``m / ‖W + sBA‖`` by row; the gradient reaches m alone."""

        def gain(magnitude: Tensor) -> Tensor:
            plain = self._plain_weight() if weight is None else weight
            return magnitude / self._norm(name, plain)

        return recomputed(gain, self._magnitude(name))

    def _magnitude(self, name: str) -> nn.Parameter:
        return cast(_Magnitude, self.lora_magnitude_vector[name]).weight

    @torch.no_grad()
    def _norm(self, name: str, weight: Tensor) -> Tensor:
        A, B = (factor.weight for factor in self.factors(name))
        s = self.scaling.operand(name)
        cross = B * (weight @ A.t().to(weight.dtype)).to(A.dtype)
        square = B * (B @ (A @ A.t()))
        return (self._squares(weight).to(A.dtype) + (2 * s * cross + s * s * square).sum(1)).sqrt()

    def _squares(self, weight: Tensor) -> Tensor:
        """``‖Wᵢ‖²``, kept for as long as the base stays the same object."""
        kept = self._base_squares
        base = self.plain_base[0]
        if kept is None or kept[0] is not base or kept[1].device != weight.device:
            wide = torch.promote_types(weight.dtype, torch.float32)
            kept = (base, weight.to(wide).square().sum(1))
            if not torch.compiler.is_compiling():
                self._base_squares = kept
        return kept[1]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._base_squares = None
        super()._load_from_state_dict(*args, **kwargs)

    # -- the books: the magnitude is one more parameter of the adapter

    def finish_adapter(self, name: str, config: LoraConfig) -> None:
        """Start at m = ‖W + sBA‖, where the update is that of plain LoRA."""
        if config.variant == self.variant:
            self.lora_magnitude_vector[name] = _Magnitude(self._norm(name, self.dequantize()))

    def tables(self) -> tuple[Any, ...]:
        return (*super().tables(), self.lora_magnitude_vector)

    def adapter_tensors(self, name: str) -> dict[str, nn.Parameter]:
        tensors = super().adapter_tensors(name)
        if name in self.lora_magnitude_vector:
            tensors["lora_magnitude_vector"] = self._magnitude(name)
        return tensors
