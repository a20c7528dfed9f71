"""Models that Transformers loads in 4 and 8 bits: wrapped, trained, copied, saved, merged."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import quantlora
from quantlora import LoraLinear

FORMS: dict[str, dict[str, Any]] = {
    "nf4": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": torch.float32,
    },
    "fp4": {"load_in_4bit": True},
    "bfloat16 storage": {"load_in_4bit": True, "bnb_4bit_quant_storage": torch.bfloat16},
    "int8": {"load_in_8bit": True},
}
FIELDS: dict[str, Any] = {"r": 4, "init_lora_weights": False}

Load = Callable[[], Any]


@pytest.fixture(params=FORMS)
def load(request: pytest.FixtureRequest, folder: Path) -> Load:
    """Gives the tiny model, loaded anew in one of the forms."""
    settings = FORMS[request.param]
    return lambda: AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=BitsAndBytesConfig(**settings), dtype=torch.float32
    )


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(3, 80, (2, 12), generator=torch.Generator().manual_seed(0))


def lora_layers(model: nn.Module) -> dict[str, LoraLinear]:
    return {name: m for name, m in model.named_modules() if isinstance(m, LoraLinear)}


def distance(actual: Tensor, wanted: Tensor) -> float:
    actual, wanted = actual.detach().double(), wanted.detach().double()
    return float((actual - wanted).norm() / wanted.norm())


def as_float(model: Any) -> Any:
    """The same model with float layers that hold the dequantized weights."""
    return quantlora.merge_and_unload(copy.deepcopy(model), mode="dequantize")


def test_all_linear_wraps_every_quantized_layer(load: Load) -> None:
    layers = lora_layers(quantlora.wrap(load(), **FIELDS))
    assert len(layers) == 14
    assert {layer.quantizer.name.split("_")[0] for layer in layers.values()} == {"bitsandbytes"}


@pytest.mark.parametrize("first", ["generated from", "fresh"])
def test_logits_are_those_of_the_float_model(load: Load, ids: Tensor, first: str) -> None:
    model = load()
    if first == "generated from":
        model.generate(ids[:, :3], attention_mask=torch.ones(2, 3), max_new_tokens=2)
    quantlora.wrap(model, **FIELDS)
    assert distance(model(ids).logits, as_float(model)(ids).logits) < 1e-5


def test_gradients_are_those_of_the_float_base(load: Load, ids: Tensor) -> None:
    model = quantlora.wrap(load(), **FIELDS)
    twin = quantlora.wrap(as_float(quantlora.wrap(load(), r=4)), **FIELDS)
    twin.load_state_dict(adapter(model), strict=False)
    for one in (model, twin):
        one.train()(ids, labels=ids).loss.backward()
    wanted = dict(twin.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert distance(parameter.grad, wanted[name].grad) < 2e-5, name


def adapter(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if "lora_" in name}


def test_training_lowers_the_loss_and_prints_nothing(
    load: Load, ids: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    model = quantlora.wrap(load(), r=8, lora_alpha=16).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    with caplog.at_level(logging.INFO, "bitsandbytes"):
        for _ in range(5):
            loss = model(ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert caplog.messages == []


def test_a_copy_computes_the_same(load: Load, ids: Tensor) -> None:
    model = quantlora.wrap(load(), **FIELDS).eval()
    assert torch.equal(copy.deepcopy(model)(ids).logits, model(ids).logits)


def test_moving_keeps_the_output(load: Load, ids: Tensor) -> None:
    model = quantlora.wrap(load(), **FIELDS).eval()
    before = model(ids).logits
    assert torch.equal(nn.Module.to(model, "cpu")(ids).logits, before)


def test_the_state_dict_holds_upstreams_tensors(load: Load) -> None:
    model = load()
    plain = model.state_dict()
    held = quantlora.wrap(model, **FIELDS).state_dict()
    inside = {name.replace(".base_layer.", "."): value for name, value in held.items()}
    assert all(
        torch.equal(inside[name].cpu(), value) for name, value in plain.items() if bits(value)
    )


def bits(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.isnan().any()


def test_unmerge_is_bit_exact(load: Load, ids: Tensor) -> None:
    model = quantlora.wrap(load(), **FIELDS).eval()
    before = model(ids).logits
    quantlora.merge(model)
    quantlora.unmerge(model)
    assert torch.equal(model(ids).logits, before)


def test_a_merge_keeps_the_format_and_loses_a_rounding(load: Load, ids: Tensor) -> None:
    model = quantlora.wrap(load(), **FIELDS).eval()
    name, layer = list(lora_layers(model).items())[3]
    weight, quantizer = layer.dequantize(), layer.quantizer
    wanted = weight + layer.delta_weight("default", weight)
    quantlora.merge_and_unload(model)
    merged = model.get_submodule(name)
    assert type(merged) is type(layer.base_layer)
    assert distance(quantizer.dequantize(merged), wanted) < 0.15
    assert model(ids).logits.isfinite().all()


def test_the_adapter_file_gives_the_same_logits(load: Load, ids: Tensor, tmp_path: Path) -> None:
    model = quantlora.wrap(load(), **FIELDS).eval()
    quantlora.save_adapter(model, tmp_path)
    again = load()
    quantlora.load_adapter(again, tmp_path)
    assert torch.equal(again.eval()(ids).logits, model(ids).logits)
