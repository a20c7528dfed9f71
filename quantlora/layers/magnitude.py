"""DoRA's numbers, whatever the layer: magnitude and direction of each output are trained apart.

    W' = m · (W + sBA) / ‖W + sBA‖        (arXiv:2402.09353, eq. 5)

The norm is over each row of the matrix ``(out, in)`` that the layer's format gives, and is taken as
a constant (section 4.3). As a sum over adapters, each adds ``g · (W + sBA) - W`` with
``g = m / ‖W + sBA‖``, so the output depends only on which adapters are active. The norm needs no
matrix of the weight's size:

    ‖Wᵢ + sBᵢA‖² = ‖Wᵢ‖² + 2s Bᵢ·(W Aᵢᵀ) + s² Bᵢ (A Aᵀ) Bᵢᵀ

but for rows that the update nearly cancels: what is left of them would be rounding alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from quantlora.formats.autocast import autocast_off
from quantlora.formats.seen import Seen
from quantlora.formats.transforms import transformed
from quantlora.layers.autograd import recomputed
from quantlora.layers.kept_gain import infers, keep_gain, kept_gain
from quantlora.layers.layer import LoraLayer
from quantlora.layers.product_dtype import HALF

if TYPE_CHECKING:
    from quantlora.config.lora_config import LoraConfig
    from quantlora.formats.quantizer import Quantizer

_KEY = "lora_magnitude_vector"


class _Magnitude(nn.Module):
    """Holds m as ``.weight``, where PEFT's state dict has it."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)


class Magnitudes(LoraLayer):
    """Mixed into a LoRA layer it makes a DoRA layer; adapters without a magnitude are plain LoRA.

    What is merged is one summand, over the base as it was before: an adapter that is not merged
    refers to that base too.
    """

    variant: ClassVar[str] = "dora"

    def __init__(self, base_layer: nn.Module, quantizer: Quantizer, path: str) -> None:
        super().__init__(base_layer, quantizer, path)
        self.lora_magnitude_vector = nn.ModuleDict()
        self._base_squares: tuple[nn.Module, Seen, Tensor] | None = None

    def matrices(self, name: str) -> tuple[Tensor, Tensor]:
        """A ``(r, in)`` and B ``(out, r)``, whose product is the update."""
        A, B = (cast(nn.Linear, factors[name]).weight for factors in (self.lora_A, self.lora_B))
        return A.flatten(1), B.flatten(1)

    def magnitude_shape(self) -> tuple[int, ...]:
        """That of m ``(out,)`` in an adapter file."""
        return (-1,)

    def has_magnitude(self, name: str) -> bool:
        return name in self.lora_magnitude_vector

    def delta_weight(self, name: str, weight: Tensor) -> Tensor:
        lora = super().delta_weight(name, weight)
        if not self.has_magnitude(name):
            return lora
        gain = self.gain(name, weight)[:, None]
        return (gain - 1) * weight.to(lora.dtype) + gain * lora

    def delta_bias(self, name: str, weight: Tensor) -> Tensor | None:
        bias = super().delta_bias(name, weight)
        if bias is None or not self.has_magnitude(name):
            return bias
        return self.gain(name, weight) * bias

    def gain(self, name: str, weight: Tensor | None) -> Tensor:
        """``m / ‖W + sBA‖`` by row; the gradient reaches m alone.

        A row of zeros has no direction: there the update is that of plain LoRA.
        """

        if infers(self):
            return self.inference_gain(name, weight)
        return self._gain(name, weight)

    def inference_gain(self, name: str, weight: Tensor | None) -> Tensor:
        """`gain`, the same for every token."""
        of = tuple(self._gain_tensors(name)), self.scaling[name]
        kept = kept_gain(self, name, *of)
        if kept is not None:
            return kept
        return keep_gain(self, name, *of, lambda: self._gain(name, weight))

    def _gain_tensors(self, name: str) -> list[Tensor]:
        base, quantizer = self.plain_base
        return [*self.adapter_tensors(name).values(), *quantizer.weight_tensors(base)]

    def _gain(self, name: str, weight: Tensor | None) -> Tensor:
        def gain(magnitude: Tensor) -> Tensor:
            norm = self._norm(name, self.plain_weight() if weight is None else weight)
            some = norm > 0
            return torch.where(some, magnitude.reshape(-1) / torch.where(some, norm, 1), 1)

        return recomputed(gain, self._magnitude(name))

    def _magnitude(self, name: str) -> nn.Parameter:
        return cast(_Magnitude, self.lora_magnitude_vector[name]).weight

    @torch.no_grad()
    def _norm(self, name: str, weight: Tensor) -> Tensor:
        with autocast_off(weight):
            return self._exact_norm(name, weight)

    def _exact_norm(self, name: str, weight: Tensor) -> Tensor:
        A, B = (factor.detach() for factor in self.matrices(name))
        s = self.scaling.operand(name)
        cross = B * (weight @ A.t().to(weight.dtype)).to(A.dtype)
        square = s * s * B * (B @ (A @ A.t()))
        squares = self._squares(weight).to(A.dtype)
        total = squares + (2 * s * cross + square).sum(1)
        coarse = torch.finfo(weight.dtype).eps > 1e-6
        small = total < (0.5 if coarse else 0.01) * (squares + square.sum(1))
        elsewhere = not weight.is_cpu  # an accelerator, for whose numbers nobody waits
        if torch.compiler.is_compiling() or transformed() or elsewhere:
            total = torch.where(small, _squares(weight + s * (B @ A)), total)
        elif bool(small.any()):
            total[small] = _squares(weight[small] + s * (B[small] @ A)).to(total.dtype)
        return total.sqrt()

    def _squares(self, weight: Tensor) -> Tensor:
        """``‖Wᵢ‖²``, kept for as long as the base's tensors are the same and unchanged."""
        base, kept = self.plain_base[0], self._base_squares
        if torch.compiler.is_compiling() or transformed():
            return _squares(weight)
        if kept is None or kept[0] is not base or not kept[1].unchanged(base):
            exact = weight if weight.dtype not in HALF else self.plain_weight()
            kept = (base, Seen(base, self.path), _squares(exact))
            self._base_squares = kept
        return kept[2]

    # -- bookkeeping: the magnitude is one more parameter of the adapter

    def finish_adapter(self, name: str, config: LoraConfig) -> None:
        """Start at m = ‖W + sBA‖, where the update is that of plain LoRA."""
        if config.variant == self.variant:
            norm = self._norm(name, self.dequantize())
            self.lora_magnitude_vector[name] = _Magnitude(norm.reshape(self.magnitude_shape()))

    def by_name(self) -> dict[str, Any]:
        return {**super().by_name(), _KEY: self.lora_magnitude_vector}

    def adapter_tensors(self, name: str) -> dict[str, nn.Parameter]:
        tensors = super().adapter_tensors(name)
        return {**tensors, _KEY: self._magnitude(name)} if self.has_magnitude(name) else tensors


def _squares(weight: Tensor) -> Tensor:
    """``‖Wᵢ‖²`` of each row, in float32 or better."""
    return weight.to(torch.promote_types(weight.dtype, torch.float32)).square().sum(1)
