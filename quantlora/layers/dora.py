"""DoRA on linear layers, convolutions and embeddings; the numbers are in `magnitude.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from quantlora.errors import ConfigError
from quantlora.formats.offloaded import read
from quantlora.layers.convolution import LoraConv
from quantlora.layers.embedding import LoraEmbedding
from quantlora.layers.fused import can_fuse
from quantlora.layers.fused_layer import can_draw_again, fused_product
from quantlora.layers.gain import scaled_by_gain
from quantlora.layers.kept_gain import infers
from quantlora.layers.linear import LoraLinear
from quantlora.layers.magnitude import Magnitudes
from quantlora.layers.product_dtype import HALF

if TYPE_CHECKING:
    from quantlora.config.lora_config import LoraConfig


class DoraLinear(Magnitudes, LoraLinear):
    """DoRA on a linear layer."""

    def forward_weight(self, x: Tensor) -> Tensor | None:
        """In the product's dtype where that is a half one: the norm's small terms are its too."""
        if self.merged_adapters or not self.lora_magnitude_vector or torch.compiler.is_compiling():
            return None
        if infers(self):
            return None
        dtype = self.base_dtype(x)
        return self.dequantize(dtype if dtype in HALF else None)

    def fused_output(self, x: Tensor, weight: Tensor | None) -> Tensor | None:
        names = [name for name in self.active_unmerged if self.has_magnitude(name)]
        if not names:
            return super().fused_output(x, weight)
        if names != [*self.active_unmerged] or len(names) > 1 or self.merged_adapters:
            return None
        if not can_fuse(self._magnitude(names[0])):
            return None
        u = fused_product(self, x, weight, None)
        if u is None:
            return None
        y = scaled_by_gain(u, self.gain(names[0], weight))
        bias = self.quantizer.bias(self.base_layer)
        return y if bias is None else y + bias.to(y.dtype)

    def adds(self, names: Sequence[str]) -> bool:
        """With a magnitude it is ``g · (product + s · B(A(x)))``, for one adapter alone."""
        kind = type(self)
        if kind.delta is not DoraLinear.delta or kind.base_product is not LoraLinear.base_product:
            return False
        if not any(map(self.has_magnitude, names)):
            return True
        return len(names) == 1 and not self.merged_adapters

    def adapted(self, product: Tensor, x: Tensor, names: Sequence[str]) -> Tensor:
        if not names or not self.has_magnitude(names[0]):
            return super().adapted(product, x, names)
        u = product if product.dtype == x.dtype else product.to(x.dtype)
        self._add_to(u, names[0], x)
        u.mul_(self.inference_gain(names[0], None))
        bias = self.quantizer.bias(self.base_layer)
        return u if bias is None else u.add_(bias)

    def fuses(self, name: str, x: Tensor) -> bool:
        """With dropout the base's product is taken of two inputs."""
        if type(self).delta is not DoraLinear.delta or self.has_bias(name):
            return False
        return not self.drops(name) if self.has_magnitude(name) else can_draw_again(self, name, x)

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
