"""The T5 family asks a layer for its weight's dtype before it calls it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers

import quantlora
from tests.tools.peft_oracle import relative

SIZES = {"vocab_size": 120, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2}
MORE = {"num_heads": 4, "decoder_start_token_id": 0, "dropout_rate": 0.0}
GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("T5", {}),
    "flan": ("T5", GATED),
    "mt5": ("MT5", {}),
    "umt5": ("UMT5", {}),
    "longt5": ("LongT5", {}),
}
IDS = torch.tensor([[5, 6, 7, 8, 2]])


def made(family: str) -> Any:
    name, fields = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**SIZES, **MORE, **fields)
    torch.manual_seed(0)
    return getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()


def float_twin(model: Any, plain: Any) -> Any:
    """``plain`` with the values of the packed weights and their updates, summed in float64."""
    for path, layer in quantlora.lora_layers(model):
        A, B = (layer.factors("default")[side].weight.double() for side in (0, 1))
        weight = layer.dequantize().double() + layer.scaling["default"] * B @ A
        plain.get_submodule(path).weight.data = weight
    return plain.double()


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_model_computes_trains_and_generates(family: str, quant_type: str) -> None:
    model = made(family)
    plain = copy.deepcopy(model)
    options: dict[str, Any] = {"quantize_options": {"quant_type": quant_type}}
    quantlora.wrap(model, backend="bitsandbytes_4bit", r=4, init_lora_weights=False, **options)
    answer = model(input_ids=IDS, labels=IDS)
    wanted = float_twin(model, plain)(input_ids=IDS, labels=IDS).logits
    assert relative(answer.logits.detach(), wanted.detach()) <= 1e-5
    answer.loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        assert len(model.generate(IDS, max_new_tokens=3)[0]) > 1
