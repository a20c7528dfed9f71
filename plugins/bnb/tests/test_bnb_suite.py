"""The conformance suite on every form of the two formats."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from quantlora.testing import QuantizerSuite


class Bitsandbytes4bitSuite(QuantizerSuite):
    """``options`` are those of `Bitsandbytes4bit.quantize`."""

    quantizer = "bitsandbytes_4bit"
    options: ClassVar[dict[str, Any]] = {}

    def make_layer(
        self, out_features: int, in_features: int, bias: bool, dtype: torch.dtype
    ) -> nn.Module:
        linear = nn.Linear(in_features, out_features, bias, dtype=dtype)
        return self.format.quantize(linear, **self.options)

    def holds(self, out_features: int, in_features: int) -> bool:
        storage = self.options.get("quant_storage", torch.uint8)
        return out_features * in_features % (2 * storage.itemsize) == 0


class TestNf4(Bitsandbytes4bitSuite):
    """NF4 with double quantization: the default, QLoRA's own."""

    shapes = (*QuantizerSuite.shapes, (40, 80), (33, 51), (2, 1))


@pytest.mark.slow
class TestNf4WithoutDoubleQuantization(Bitsandbytes4bitSuite):
    options: ClassVar = {"compress_statistics": False, "blocksize": 128}


class TestFp4(Bitsandbytes4bitSuite):
    options: ClassVar = {"quant_type": "fp4"}
    closeness = 0.2


@pytest.mark.slow
class TestFp4InFloatStorage(Bitsandbytes4bitSuite):
    options: ClassVar = {"quant_type": "fp4", "quant_storage": torch.float32}
    closeness = 0.2


@pytest.mark.slow
class TestNf4InHalfStorage(Bitsandbytes4bitSuite):
    options: ClassVar = {"quant_storage": torch.bfloat16, "compute_dtype": torch.bfloat16}


class TestInt8(QuantizerSuite):
    quantizer = "bitsandbytes_8bit"
    closeness = 0.02
