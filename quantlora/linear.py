"""`LoraLinear`: the LoRA layer over any weight format, and the file to read first.

    y = x · dequantize(Q)ᵀ + bias + Σ s · B(A(dropout(x)))      over the active adapters

LoRA: Hu et al. 2021, arXiv:2106.09685, eq. 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from quantlora.autograd import frozen_linear, low_rank, working_dtype
from quantlora.layer import LoraLayer

if TYPE_CHECKING:
    from quantlora.config import LoraConfig
    from quantlora.quantizer import Quantizer


class LoraLinear(LoraLayer):
    """LoRA on a linear layer. Variants subclass it and override `delta` and `delta_weight`."""

    variant: ClassVar[str] = "lora"

    @classmethod
    def accepts(cls, base_layer: nn.Module, quantizer: Quantizer) -> bool:
        return True

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = self.base_forward(x)
        for name in self.contributing:
            y = y + self.delta(name, x).to(y.dtype)
        return y

    @property
    def contributing(self) -> tuple[str, ...]:
        """Adapters whose product is added: the active ones that are not folded in already."""
        if not self.enabled:
            return ()
        return tuple(name for name in self.active if name not in self.merged)

    def base_forward(self, x: Tensor) -> Tensor:
        """``x · dequantize(Q)ᵀ + bias``; ``(..., in_features)`` to ``(..., out_features)``."""
        own = self.quantizer.compute_dtype(self.base_layer) or x.dtype
        dtype = working_dtype(x, own)
        y = self._base_product(x.to(dtype))
        bias = self.quantizer.bias(self.base_layer)
        y = y if bias is None else y + bias.to(y.dtype)
        return y.to(working_dtype(x, x.dtype))

    def _base_product(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            fast = self.quantizer.matmul(self.base_layer, x)
            if fast is not None:
                return fast
        return frozen_linear(x, self.dequantize)

    def factors(self, name: str) -> tuple[nn.Linear, nn.Linear]:
        """A ``(r, in_features)`` and B ``(out_features, r)`` as linear layers."""
        return cast(nn.Linear, self.lora_A[name]), cast(nn.Linear, self.lora_B[name])

    def delta(self, name: str, x: Tensor) -> Tensor:
        """``s · B(A(dropout(x)))`` for one adapter."""
        A, B = self.factors(name)
        x = self.lora_dropout[name](x)
        y = low_rank(x, A.weight, B.weight, self.scaling[name])
        return y if B.bias is None else y + self.scaling[name] * B.bias.to(y.dtype)

    def delta_weight(self, name: str) -> Tensor:
        """``s · B · A``, the update as a matrix ``(out_features, in_features)``, in A's dtype."""
        A, B = self.factors(name)
        return self.scaling[name] * (B.weight @ A.weight)

    def delta_bias(self, name: str) -> Tensor | None:
        """``s · bias of B`` (``lora_bias``), ``(out_features,)``."""
        bias = self.factors(name)[1].bias
        return None if bias is None else self.scaling[name] * bias

    def merged_parameters(
        self, names: Sequence[str], weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        for name in names:
            delta, delta_bias = self.delta_weight(name), self.delta_bias(name)
            weight = weight.to(torch.promote_types(weight.dtype, delta.dtype)) + delta
            if delta_bias is not None:
                bias = delta_bias if bias is None else bias + delta_bias.to(bias.dtype)
        return weight, bias

    def new_factors(
        self, config: LoraConfig, r: int, dtype: torch.dtype
    ) -> tuple[nn.Module, nn.Module]:
        self.check_rank(r)
        place: dict[str, Any] = {"device": self.quantizer.device(self.base_layer), "dtype": dtype}
        A = nn.Linear(self.in_features, r, bias=False, **place)
        B = nn.Linear(r, self.out_features, bias=config.lora_bias, **place)
        for parameter in (*A.parameters(), *B.parameters()):
            nn.init.zeros_(parameter)
        return A, B
