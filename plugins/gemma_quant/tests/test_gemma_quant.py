"""Gemma's layers: the conformance suite, and what they hold, byte by byte."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import quantlora
from quantlora import BackendError, registry
from quantlora.testing import QuantizerSuite
from quantlora.testing.models import tiny_llama

pytest.importorskip("transformers.integrations.gemma_quant")


class TestFourBits(QuantizerSuite):
    quantizer = "gemma_quant"
    closeness = 0.25


@pytest.mark.slow
class TestTwoBits(QuantizerSuite):
    quantizer = "gemma_quant"
    options: ClassVar[dict[str, Any]] = {"bits": 2}
    closeness = 1.0


@pytest.mark.slow
class TestEightBits(QuantizerSuite):
    quantizer = "gemma_quant"
    options: ClassVar[dict[str, Any]] = {"bits": 8}


def layer(bits: int = 4, columns: int = 50) -> Any:
    """A layer whose bytes are random."""
    from transformers.integrations.gemma_quant import QuantizedLinear

    made: Any = QuantizedLinear(columns, 24, num_bits=bits).requires_grad_(False)
    made.weight.data = torch.randint(0, 256, made.weight.shape, dtype=torch.uint8)
    made.weight.data = made.weight.data.view(torch.int8 if bits == 8 else torch.uint8)
    made.weight_scale.data = torch.rand(24, 1) + 0.1
    return made


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("columns", [48, 50, 51])
def test_a_weight_is_what_transformers_dequantizes(bits: int, columns: int) -> None:
    found, made = registry().quantizer("gemma_quant"), layer(bits, columns)
    assert torch.equal(found.dequantize(made), made._dequantize_weights())
    assert torch.equal(found.affine(made).dequantize(), made._dequantize_weights())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_merge_without_an_update_changes_no_value(bits: int) -> None:
    found, made = registry().quantizer("gemma_quant"), layer(bits)
    linear = nn.Linear(50, 24, bias=False)
    linear.weight.data = found.dequantize(made)
    again = found.quantize(linear, like=made)
    assert torch.equal(found.dequantize(again), linear.weight)
    assert again.weight.dtype == made.weight.dtype


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_weight_takes_its_bits_and_a_scale_a_row(bits: int) -> None:
    made = layer(bits, 64)
    assert made.weight.nbytes + made.weight_scale.nbytes == 24 * 64 * bits // 8 + 24 * 4


def test_a_model_is_trained_merged_saved_and_loaded_again(tmp_path) -> None:
    model: Any = tiny_llama(num_hidden_layers=1)
    quantlora.wrap(model, backend="gemma_quant", r=2)
    ids = torch.randint(3, 60, (2, 8))
    model.train()(input_ids=ids, labels=ids).loss.backward()
    B = model.model.layers[0].mlp.up_proj.lora_B["default"].weight
    assert B.grad.abs().sum() > 0
    torch.nn.init.normal_(B, std=0.05)
    quantlora.merge_and_unload(model, mode="requantize")
    torch.save(model.state_dict(), tmp_path / "x")
    again: Any = quantlora.quantize(tiny_llama(num_hidden_layers=1), backend="gemma_quant")
    again.load_state_dict(torch.load(tmp_path / "x"))
    assert torch.equal(model.eval()(ids).logits, again.eval()(ids).logits)


#: What is broken, and what the error says of it.
BROKEN: dict[str, tuple[Callable[[Any], object], str]] = {
    "truncated": (
        lambda y: setattr(y, "weight", nn.Parameter(y.weight[:, :-1].clone(), False)),
        r"weight has shape \(24, 24\), not \(24, 25\)",
    ),
    "scales": (
        lambda y: setattr(y, "weight_scale", nn.Parameter(torch.ones(24, 2), False)),
        r"weight_scale has shape \(24, 2\)",
    ),
    "zero": (lambda y: y.weight_scale.data.zero_(), "all zero or not finite"),
    "infinite": (lambda y: y.weight_scale.data.fill_(float("nan")), "all zero or not finite"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_damaged_layer_is_refused_by_its_path(name: str) -> None:
    made, (damage, message) = layer(), BROKEN[name]
    damage(made)
    with pytest.raises(BackendError, match=f"0: this Gemma layer cannot be read: .*{message}"):
        quantlora.wrap(nn.Sequential(made), r=2, target_modules=["0"])
