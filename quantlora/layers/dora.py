"""DoRA on linear layers, convolutions and embeddings; the numbers are in `magnitude.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from quantlora.errors import ConfigError
from quantlora.formats.offloaded import read
from quantlora.layers.convolution import LoraConv
from quantlora.layers.embedding import LoraEmbedding
from quantlora.layers.kept_gain import infers
from quantlora.layers.linear import LoraLinear
from quantlora.layers.magnitude import Magnitudes

if TYPE_CHECKING:
    from quantlora.config.lora_config import LoraConfig


class DoraLinear(Magnitudes, LoraLinear):
    """DoRA on a linear layer."""

    def forward_weight(self) -> Tensor | None:
        if self.merged_adapters or not self.lora_magnitude_vector or torch.compiler.is_compiling():
            return None
        return None if infers(self) else self.dequantize()

    def delta(self, name: str, x: Tensor, product: Tensor, weight: Tensor | None) -> Tensor:
        lora = super().delta(name, x, product, weight)
        if not self.has_magnitude(name):
            return lora
        gain = self.gain(name, weight)
        if self.drops(name) or self.merged_adapters:
            product = self.product(x.to(product.dtype), *self.plain_base, weight)
        return (gain - 1).to(product.dtype) * product + gain.to(lora.dtype) * lora


class DoraConv(Magnitudes, LoraConv):
    """DoRA on a convolution; m is ``(1, out_channels, 1...)`` in files."""

    def magnitude_shape(self) -> tuple[int, ...]:
        return (1, -1, *[1] * len(self.conv.kernel_size))

    def delta(self, name: str, x: Tensor, base: Tensor) -> Tensor:
        lora = super().delta(name, x, base)
        if not self.has_magnitude(name):
            return lora
        conv, quantizer = self.plain_base
        if self.drops(name) or self.merged_adapters:
            base = conv(x)
        bias, ones = read(quantizer.bias, conv), [1] * len(self.conv.kernel_size)
        product = base if bias is None else base - bias.to(base.dtype).view(-1, *ones)
        gain = self.gain(name, None).view(-1, *ones)
        return (gain - 1).to(product.dtype) * product + gain.to(lora.dtype) * lora

    def new_factors(
        self, config: LoraConfig, r: int, dtype: torch.dtype
    ) -> tuple[nn.Module, nn.Module]:
        if self.conv.groups > 1 and config.variant == self.variant:
            raise ConfigError(
                f"{self.path}: DoRA needs the norm of W + sBA, and the adapter of a convolution "
                f"with groups={self.conv.groups} has no such sum; use plain LoRA here."
            )
        return super().new_factors(config, r, dtype)


class DoraEmbedding(Magnitudes, LoraEmbedding):
    """DoRA on an embedding: the norm is over all tokens, for each of its dimensions."""

    def matrices(self, name: str) -> tuple[Tensor, Tensor]:
        return self.lora_embedding_A[name], self.lora_embedding_B[name]

    def delta(self, name: str, x: Tensor, base: Tensor) -> Tensor:
        lora = super().delta(name, x, base)
        if not self.has_magnitude(name):
            return lora
        gain = self.gain(name, None)
        if self.merged_adapters:
            base = self.plain_base[0](x)
        return (gain - 1).to(base.dtype) * base + gain.to(lora.dtype) * lora
