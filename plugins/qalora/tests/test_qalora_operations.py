"""Every operation of an adapter's life, with QA-LoRA adapters on a format of groups."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from quantlora.testing.operation_suite import OperationTests


class TestOperations(OperationTests):
    quantizer = "normalfloat"
    shapes = ((32, 64),)
    adapter: ClassVar[dict[str, Any]] = {"use_qalora": True}

    def make_layer(
        self, out_features: int, in_features: int, bias: bool, dtype: torch.dtype
    ) -> nn.Module:
        linear = nn.Linear(in_features, out_features, bias, dtype=dtype)
        return self.format.quantize(linear, bits=4, quant_type="uniform", block_size=16)
