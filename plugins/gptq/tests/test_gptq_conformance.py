"""The conformance suite on real layers of this environment's library, at every width."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import nn

from quantlora.testing import QuantizerSuite

from .gptq_checkpoint import Recipe, quantized
from .gptq_loading import needs_library


class Gptq(QuantizerSuite):
    quantizer = "gptq"
    shapes = ((96, 64), (32, 32))
    recipe: ClassVar = Recipe()

    def holds(self, out_features: int, in_features: int) -> bool:
        whole_words = all(size * self.recipe.bits % 32 == 0 for size in (out_features, in_features))
        return whole_words and in_features % self.recipe.group_size == 0

    def make_layer(self, out_features, in_features, bias, dtype) -> nn.Module:
        linear = nn.Linear(in_features, out_features, bias, dtype=dtype)
        size = self.recipe.group_size
        return self.format.quantize(linear, bits=self.recipe.bits, group_size=size)


@needs_library
class TestFourBits(Gptq):
    shapes = ((128, 128), (96, 64), (40, 64), (32, 32))


@pytest.mark.slow
@needs_library
class TestTwoBits(Gptq):
    recipe: ClassVar = Recipe(bits=2, group_size=16)
    closeness = 0.7


@pytest.mark.slow
@needs_library
class TestThreeBits(Gptq):
    recipe: ClassVar = Recipe(bits=3)
    closeness = 0.3


@pytest.mark.slow
@needs_library
class TestEightBits(Gptq):
    recipe: ClassVar = Recipe(bits=8)


@needs_library
class TestActivationOrder(Gptq):
    """Groups that are not neighbours (``desc_act``)."""

    recipe: ClassVar = Recipe(desc_act=True)

    def make_layer(self, out_features, in_features, bias, dtype) -> nn.Module:
        linear = nn.Linear(in_features, out_features, bias, dtype=dtype)
        layer = self.format.quantize(linear, group_size=self.recipe.group_size)
        packed = quantized(linear.weight.detach().float(), self.recipe)
        layer.g_idx = packed.g_idx.to(torch.int32)
        return self.format.quantize(linear, like=layer)
