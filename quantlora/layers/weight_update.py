"""What an adapter does to a layer, as a matrix: for merging, combining and export."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from quantlora.errors import MergeError

if TYPE_CHECKING:
    from quantlora.formats.quantizer import Quantizer


class WeightUpdate:
    """A variant says `delta_weight`; what merging makes of it follows."""

    variant: ClassVar[str]
    path: str

    def merged_parameters(
        self, names: Sequence[str], weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Weight and bias with the adapters ``names`` folded in, in float32 or better."""
        merged = weight
        for name in names:
            delta = self.delta_weight(name, weight)
            merged = merged.to(torch.promote_types(merged.dtype, delta.dtype)) + delta
        return merged, self.merged_bias(names, weight, bias)

    def merged_bias(
        self, names: Sequence[str], weight: Tensor, bias: Tensor | None
    ) -> Tensor | None:
        """The base's ``bias`` with those of the adapters ``names`` added."""
        for name in names:
            delta = self.delta_bias(name, weight)
            if delta is not None:
                bias = delta if bias is None else bias + delta.to(bias.dtype)
        return bias

    def exact_base(
        self, names: Sequence[str], base: nn.Module, quantizer: Quantizer
    ) -> tuple[nn.Module, Quantizer]:
        """A base at the same bits with ``names`` folded in without loss, where a variant can."""
        raise MergeError(
            f"{self.path}: variant {self.variant!r} has no exact merge at the same bits; use "
            f'mode="requantize" (with its loss measured) or mode="dequantize".'
        )

    def delta_weight(self, name: str, weight: Tensor) -> Tensor:
        """The update as a matrix ``(out_features, in_features)`` over the base ``weight``."""
        raise NotImplementedError

    def delta_bias(self, name: str, weight: Tensor) -> Tensor | None:
        """The update of the bias (``lora_bias``), ``(out_features,)``."""
        return None
