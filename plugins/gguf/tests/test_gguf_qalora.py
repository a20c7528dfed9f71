"""QA-LoRA's exact merge of layers in blocks: what comes out computes what was trained."""

from __future__ import annotations

import pytest
import torch
from quantlora_gguf import BLOCK_TYPES, GgufLinear
from torch import nn

import quantlora

pytest.importorskip("gguf")
pytest.importorskip("scipy")


@pytest.mark.parametrize("block_type", ["Q4_0", "Q4_1", "Q8_0"])
def test_the_exact_merge_computes_what_was_trained(block_type):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 24))
    options = {"block_type": block_type}
    quantlora.quantize(model, backend="gguf", target_modules=["0"], quantize_options=options)
    quantlora.wrap(model, target_modules=["0"], r=2, use_qalora=True, init_lora_weights=False)
    x = torch.randn(5, 64)
    before = model(x)
    quantlora.merge(model, mode="exact")
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)


def test_looked_up_codes_have_no_exact_merge_and_say_so():
    kind = BLOCK_TYPES["IQ4_NL"]
    layer = GgufLinear(64, 8, block_type="IQ4_NL")
    layer.weight.data.copy_(torch.zeros(8, kind.row_bytes(64)))
    layer.bias.data.zero_()
    model = quantlora.wrap(nn.Sequential(layer), target_modules=["0"], r=2, use_qalora=True)
    with pytest.raises(quantlora.MergeError, match="0"):
        quantlora.merge(model, mode="exact")
