"""The packed layers: their products, gradients, dtypes, ties; and what cannot be packed."""

from __future__ import annotations

import copy

import pytest
import torch
from quantlora_gguf import GgufEmbedding, GgufQuantizer
from torch import nn

import quantlora

pytest.importorskip("gguf")


def packed(out_features: int = 6, in_features: int = 64, **options) -> nn.Module:
    torch.manual_seed(0)
    return GgufQuantizer().quantize(nn.Linear(in_features, out_features), **options)


def embedding(scale: float | None = None, dtype: torch.dtype = torch.float32) -> GgufEmbedding:
    linear = packed(10, 64, bits=8)
    layer = GgufEmbedding(10, 64, block_type="Q8_0", embed_scale=scale, dtype=dtype)
    layer.weight = linear.weight
    return layer


@pytest.mark.parametrize("chunk", [1, 1 << 24])
def test_product_and_gradient_are_those_of_the_float_weight(chunk, monkeypatch):
    monkeypatch.setattr("quantlora_gguf.product._CHUNK", chunk)
    layer = packed()
    x = torch.randn(2, 3, 64, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    y.square().sum().backward()
    weight, bias = layer.dequantize().double(), layer.bias.double()
    wanted = x.detach() @ weight.T + bias
    assert torch.allclose(y, wanted, rtol=1e-12)
    assert torch.allclose(x.grad, 2 * wanted @ weight, rtol=1e-12)


def test_backward_keeps_packed_rows_only():
    layer, kept = packed(128, 256), []
    x = torch.randn(1, 256, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)
    assert [t.dtype for t in kept] == [torch.uint8]


def test_autocast_decides_the_dtype_of_a_product():
    with torch.autocast("cpu", torch.bfloat16):
        assert packed()(torch.randn(1, 64)).dtype == torch.bfloat16


def test_a_change_of_dtype_leaves_the_blocks_alone():
    layer = packed()
    before = layer.weight.clone()
    layer.to(torch.bfloat16)
    layer.type(torch.float16)
    assert torch.equal(layer.weight, before)
    assert layer.bias.dtype == layer.dtype == torch.float16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_embedding_looks_up_what_it_would_as_floats(dtype):
    layer, tokens = embedding(dtype=dtype), torch.tensor([[1, 9], [0, 1]])
    wanted = nn.functional.embedding(tokens, layer.dequantize(dtype))
    assert torch.equal(layer(tokens), wanted)
    assert layer(tokens).dtype == dtype


def test_an_embeddings_scale_is_rounded_as_gemmas():
    layer, tokens = embedding(25.3, torch.bfloat16), torch.tensor([3])
    wanted = layer.dequantize(torch.bfloat16)[3:4] * torch.tensor(25.3).bfloat16()
    assert torch.equal(layer(tokens), wanted)


def test_tied_layers_stay_tied_when_moved_and_copied():
    rows, head = embedding(), packed(10, 64, bits=8)
    head.weight = rows.weight
    both = copy.deepcopy(nn.ModuleList([rows, head])).to("cpu", torch.bfloat16)
    assert both[0].weight is both[1].weight


def test_a_row_that_is_no_multiple_of_the_block_is_refused_by_name():
    model = nn.Sequential(nn.Linear(50, 8))
    with pytest.raises(quantlora.BackendError, match="0: 50 inputs are no multiple of 32"):
        quantlora.wrap(model, backend="gguf")


def test_other_bits_are_refused_with_those_there_are():
    with pytest.raises(quantlora.BackendError, match=r"packs 2 \(Q2_K\), 3 \(Q3_K\), 4"):
        packed(bits=7)


def test_an_unknown_type_is_refused_with_those_there_are():
    with pytest.raises(quantlora.BackendError, match="no block type 'IQ2_XXS'; these are: F16, Q4"):
        packed(block_type="IQ2_XXS")
