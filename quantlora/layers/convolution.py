"""`LoraConv`: LoRA on a convolution in one, two or three dimensions.

    y = conv(x; W) + Σ s · conv₁(conv(x; A); B)     A (r, in, k...), B (out, r, 1...)

A has the layer's kernel, stride, padding and dilation; B is a convolution of kernel 1. The update
of W is ``s · B · A`` over the flattened kernels. With groups, A sees all channels, as in PEFT, so
there is no update of W that would do the same, and no merge.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from quantlora.errors import ConfigError, MergeError
from quantlora.formats.autocast import working_dtype
from quantlora.formats.layouts import CONVOLUTIONS
from quantlora.layers.layer import LoraLayer
from quantlora.layers.sub_batch import first_input

if TYPE_CHECKING:
    from quantlora.config.lora_config import LoraConfig
    from quantlora.formats.quantizer import Quantizer

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d


class LoraConv(LoraLayer):
    """LoRA on `nn.Conv1d`, `nn.Conv2d` and `nn.Conv3d`."""

    variant: ClassVar[str] = "lora"

    @classmethod
    def accepts(cls, base_layer: nn.Module, quantizer: Quantizer) -> bool:
        return isinstance(base_layer, CONVOLUTIONS)

    @property
    def conv(self) -> Conv:
        return cast(Conv, self.base_layer)

    @property
    def rank_multiple(self) -> int:
        """B has the layer's groups, and each takes as many of the rank."""
        return self.conv.groups

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = self.conv(*args, **kwargs)
        return self.add_deltas(y, self._delta, (first_input(args, kwargs), y))

    def _delta(self, name: str, x: Tensor, base: Tensor) -> Tensor:
        return self.delta(name, self.lora_dropout[name](x), base)

    def delta(self, name: str, x: Tensor, base: Tensor) -> Tensor:
        """What adapter ``name`` adds to the output ``base`` of the layer itself.

        Args:
            x: the layer's input, after the adapter's dropout.
        """
        A, B = cast(Conv, self.lora_A[name]), cast(Conv, self.lora_B[name])
        y: Tensor = B(A(x.to(working_dtype(x, A.weight.dtype))))
        return self.scaling.operand(name) * y

    def delta_weight(self, name: str, weight: Tensor) -> Tensor:
        if self.conv.groups > 1:
            raise MergeError(
                f"{self.path}: the adapter of a convolution with groups={self.conv.groups} sees "
                f"all channels, the layer's own weight does not, so it cannot hold the update. "
                f"Keep the adapter unmerged, or leave this layer out."
            )
        A, B = cast(Conv, self.lora_A[name]), cast(Conv, self.lora_B[name])
        return self.scaling[name] * (B.weight.flatten(1) @ A.weight.flatten(1))

    def delta_bias(self, name: str, weight: Tensor) -> Tensor | None:
        bias = cast(Conv, self.lora_B[name]).bias
        return None if bias is None else self.scaling[name] * bias

    def has_bias(self, name: str) -> bool:
        return cast(Conv, self.lora_B[name]).bias is not None

    def new_factors(
        self, config: LoraConfig, r: int, dtype: torch.dtype
    ) -> tuple[nn.Module, nn.Module]:
        conv = self.conv
        if r % conv.groups:
            raise ConfigError(
                f"{self.path}: rank {r} is no multiple of the convolution's groups "
                f"({conv.groups}); give this layer another rank by rank_pattern."
            )
        kind = next(convolution for convolution in CONVOLUTIONS if isinstance(conv, convolution))
        factory_kwargs: dict[str, Any] = {"device": self.quantizer.device(conv), "dtype": dtype}
        same: dict[str, Any] = {
            "stride": conv.stride,
            "padding": conv.padding,
            "dilation": conv.dilation,
            "padding_mode": conv.padding_mode,
        }
        A = kind(
            conv.in_channels, r, cast(Any, conv.kernel_size), bias=False, **same, **factory_kwargs
        )
        B = kind(
            r, conv.out_channels, 1, groups=conv.groups, bias=config.lora_bias, **factory_kwargs
        )
        for parameter in (*A.parameters(), *B.parameters()):
            nn.init.zeros_(parameter)
        return A, B
