"""The conformance suite on every width, both kinds of levels and double-quantized scales."""

from typing import ClassVar

import pytest
from torch import nn

from quantlora.testing import QuantizerSuite


class Packed(QuantizerSuite):
    quantizer = "normalfloat"
    options: ClassVar = {}

    def make_layer(self, out_features, in_features, bias, dtype):
        linear = nn.Linear(in_features, out_features, bias, dtype=dtype)
        return self.format.quantize(linear, **self.options)


@pytest.mark.slow
class TestNF2(Packed):
    options: ClassVar = {"bits": 2}
    closeness = 0.7


@pytest.mark.slow
class TestNF3(Packed):
    options: ClassVar = {"bits": 3, "block_size": 32}
    closeness = 0.3


class TestNF4(Packed):
    options: ClassVar = {"double_quant": True}


@pytest.mark.slow
class TestNF8(Packed):
    options: ClassVar = {"bits": 8}


class TestUniform(Packed):
    options: ClassVar = {"quant_type": "uniform", "block_size": 16}
