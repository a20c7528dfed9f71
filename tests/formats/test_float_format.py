"""The built-in float quantizer, certified by the suite that plugin authors use."""

from __future__ import annotations

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from quantlora.testing import QuantizerSuite


class TestLinear(QuantizerSuite):
    quantizer = "float"
    closeness = 0.0


class TestConv1D(QuantizerSuite):
    """GPT-2's layer: the weight is stored transposed, and there is always a bias."""

    quantizer = "float"
    closeness = 0.0
    biases = (True,)

    def make_layer(
        self, out_features: int, in_features: int, bias: bool, dtype: torch.dtype
    ) -> nn.Module:
        return Conv1D(out_features, in_features).to(dtype)
