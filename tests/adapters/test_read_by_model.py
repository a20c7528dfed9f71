"""Layers whose weight the model reads do not stay packed without their LoRA layer."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import quantlora
from quantlora.errors import AdapterWarning

BACKENDS = ["bitsandbytes_4bit", "bitsandbytes_8bit", "normalfloat"]
IDS = torch.tensor([[5, 6, 7, 8, 2]])


def t5() -> nn.Module:
    sizes = {"vocab_size": 64, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 1}
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(**sizes, num_heads=4, decoder_start_token_id=0, dropout_rate=0.0)
    )


def mobilebert() -> nn.Module:
    sizes = {"vocab_size": 64, "hidden_size": 128, "num_hidden_layers": 1, "embedding_size": 64}
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    own = {"intra_bottleneck_size": 64, "intermediate_size": 64, **off}
    return transformers.MobileBertForMaskedLM(transformers.MobileBertConfig(**sizes, **own))


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, labels=IDS).logits


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("make", [t5, mobilebert])
def test_unloaded_a_model_that_reads_weights_computes_as_before(
    make: Any, backend: str, merged: bool
) -> None:
    torch.manual_seed(0)
    model = quantlora.wrap(make(), backend=backend, r=2, init_lora_weights=False).train()
    if merged:
        quantlora.merge(model)
    off = contextlib.nullcontext() if merged else quantlora.adapters_disabled(model)
    with off:
        wanted = logits(model)
    said = contextlib.nullcontext() if backend == "normalfloat" else pytest.warns(AdapterWarning)
    with said:
        plain = quantlora.merge_and_unload(model) if merged else quantlora.unload(model)
    torch.testing.assert_close(logits(plain), wanted, atol=1e-4, rtol=1e-4)


def test_quantize_leaves_a_layer_float_whose_weight_the_model_reads() -> None:
    torch.manual_seed(0)
    with pytest.warns(AdapterWarning, match="wo: left in float"):
        model = quantlora.quantize(t5(), backend="bitsandbytes_4bit")
    kinds = {path: type(one).__name__ for path, one in model.named_modules()}
    assert kinds["encoder.block.0.layer.1.DenseReluDense.wo"] == "Linear"
    assert kinds["encoder.block.0.layer.1.DenseReluDense.wi"] == "Linear4bit"
    assert logits(model).isfinite().all()


def test_a_layer_that_came_packed_goes_back_as_it_came() -> None:
    model = quantlora.quantize(nn.Sequential(nn.Linear(64, 64)), backend="bitsandbytes_4bit")
    layer = model[0]
    assert quantlora.unload(quantlora.wrap(model, r=2))[0] is layer


class ByVariable(nn.Module):
    """Reads a weight in ways that no search in the code finds."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(64, 64), nn.Linear(64, 64)])

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layers[0]
        weight = getattr(layer, "weight")  # noqa: B009
        return self.layers[1](nn.functional.linear(x, weight, layer.bias))


@pytest.mark.parametrize("backend", BACKENDS[:2])
def test_a_read_that_no_search_finds_has_been_answered_by_the_lora_layer(backend: str) -> None:
    torch.manual_seed(0)
    model = quantlora.wrap(ByVariable(), backend=backend, r=2, init_lora_weights=False)
    x = torch.randn(3, 64)
    with quantlora.adapters_disabled(model):
        wanted = model(x)
    assert not torch.allclose(model(x), wanted)
    with pytest.warns(AdapterWarning, match=r"^layers\.0: left in float"):
        quantlora.unload(model)
    torch.testing.assert_close(model(x), wanted, atol=1e-4, rtol=1e-4)


class Kept(ByVariable):
    """Computes with a weight that it took when it was made, which no layer can answer for."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = [self.layers[0].weight]

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[1](nn.functional.linear(x, self.kept[0], self.layers[0].bias))


class ByName(ByVariable):
    """Looks a parameter up by its name, past the layer that stands for it."""

    def forward(self, x: Tensor) -> Tensor:
        found = [p for name, p in self.layers[0].named_parameters() if name.endswith("r.weight")]
        weight = found[0] if found else self.layers[0].weight
        return self.layers[1](nn.functional.linear(x, weight, self.layers[0].bias))


@pytest.mark.parametrize("kind", [Kept, ByName])
def test_a_weight_that_is_read_past_its_layer_is_named_in_training(kind: Any) -> None:
    model = quantlora.wrap(kind(), r=2, init_lora_weights=False)
    trained = [p for p in model.parameters() if p.requires_grad]
    model(torch.randn(3, 64)).sum().backward()
    with pytest.warns(AdapterWarning, match=r"^layers\.0\.lora_B\.weight .*: no gradient"):
        torch.optim.SGD(trained, lr=0.1).step()
