"""`LoraLinear`'s forward, apart from what the suite certifies for every format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import quantlora
from quantlora.operations.reference import float64, relative


def test_the_output_is_the_formula_of_the_docstring(wrapped: Callable[..., nn.Module]) -> None:
    layer = wrapped(r=4, lora_alpha=6).layers[0].up_proj
    A, B = (float64(factor.weight) for factor in layer.factors("default"))
    x = torch.randn(3, 8)
    base = float64(x) @ float64(layer.base_layer.weight).t() + float64(layer.bias)
    assert relative(layer(x), base + 6 / 4 * float64(x) @ A.t() @ B.t()) <= 1e-6


def test_rslora_scales_by_the_root_of_the_rank(wrapped: Callable[..., nn.Module]) -> None:
    layer = wrapped(r=4, lora_alpha=6, use_rslora=True).layers[0].q_proj
    assert layer.scaling == {"default": 3.0}


def test_the_bias_of_b_is_scaled_too(wrapped: Callable[..., nn.Module]) -> None:
    layer = wrapped(lora_bias=True, lora_alpha=6).layers[0].up_proj
    x = torch.randn(3, 8)
    plain = layer(x)
    with torch.no_grad():
        layer.lora_B["default"].bias += 1
    assert torch.allclose(layer(x), plain + 6 / 2, atol=1e-5)


def test_dropout_is_off_in_eval(wrapped: Callable[..., nn.Module], x: Tensor) -> None:
    model = wrapped(lora_dropout=0.5).eval()
    assert torch.equal(model(x), model(x))


def test_dropout_of_an_adapter_added_in_eval_is_off(x: Tensor) -> None:
    model = nn.Sequential(nn.Linear(x.shape[-1], 6)).eval()
    fields: dict[str, Any] = {"lora_dropout": 0.5, "init_lora_weights": False}
    quantlora.wrap(model, r=2, **fields)
    quantlora.wrap(model, adapter_name="second", r=2, **fields)
    quantlora.set_adapter(model, ["default", "second"])
    assert torch.equal(model(x), model(x))


def test_dropout_drops_inputs_of_the_adapter_and_scales_the_rest(
    wrapped: Callable[..., nn.Module],
) -> None:
    """With x = 1 and A = B = 1 each output is the number of kept inputs over the keep rate."""
    layer = wrapped(r=1, lora_alpha=1, lora_dropout=0.75).layers[0].q_proj.train()
    with torch.no_grad():
        for factor in layer.factors("default"):
            factor.weight.fill_(1)
        layer.base_layer.weight.zero_()
    kept = layer(torch.ones(1000, 8)) * 0.25
    assert torch.equal(kept, kept.round())
    assert abs(float(kept.detach().mean()) - 8 * 0.25) < 0.2


def test_the_base_sees_no_dropout(wrapped: Callable[..., nn.Module]) -> None:
    layer = wrapped(lora_dropout=0.9, init_lora_weights=True).layers[0].q_proj.train()
    x = torch.randn(3, 8)
    assert torch.equal(layer(x), layer.base_layer(x))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_an_input_that_is_not_floating_is_refused(
    dtype: torch.dtype, wrapped: Callable[..., nn.Module]
) -> None:
    layer = wrapped().layers[0].q_proj
    with pytest.raises(quantlora.LayerError, match=r"layers\.0\.q_proj: the input is torch\."):
        layer(torch.ones(3, 8).to(dtype))


def test_the_dtypes_of_a_half_precision_model_are_kept(x: Tensor) -> None:
    """A and B in float32, activations in bfloat16."""
    model = nn.Sequential(nn.Linear(8, 8)).bfloat16()
    quantlora.wrap(model, r=2, target_modules=["0"])
    assert {p.dtype for p in model[0].adapter_tensors("default").values()} == {torch.float32}
    assert model(x.bfloat16()).dtype == torch.bfloat16


def test_a_float64_model_computes_in_float64(x: Tensor) -> None:
    model = nn.Sequential(nn.Linear(8, 8)).double()
    quantlora.wrap(model, r=2, target_modules=["0"], init_lora_weights=False)
    model[0](x.double().requires_grad_()).sum().backward()
    assert model[0].lora_A["default"].weight.grad.dtype == torch.float64


def test_shape_and_dtype_of_the_weight_can_be_looked_at(
    wrapped: Callable[..., nn.Module],
) -> None:
    """Transformers reads the dtype of some layers' weights."""
    layer = wrapped().layers[0].up_proj
    assert layer.weight.dtype == layer.base_layer.weight.dtype
    assert layer.weight.shape == (16, 8)
    assert layer.bias is layer.base_layer.bias
    assert (layer.out_features, layer.in_features) == (16, 8)


def test_its_text_shows_format_rank_and_scale(wrapped: Callable[..., nn.Module]) -> None:
    assert "float, default: r=2, s=4" in repr(wrapped().layers[0].q_proj)


@pytest.mark.parametrize("fields", [{}, {"use_dora": True, "lora_dropout": 0.5}], ids=str)
def test_backward_is_that_of_the_base_forward_saw(
    fields: dict[str, Any], wrapped: Callable[..., nn.Module]
) -> None:
    """A merge in between puts another base in its place."""
    model, x = wrapped(**fields), torch.randn(3, 8, requires_grad=True)
    layer = model.layers[0].q_proj
    gradients = []
    for step in (lambda _: None, quantlora.merge):
        torch.manual_seed(0)
        y = layer(x)
        step(model)
        gradients.append(torch.autograd.grad(y.sum(), x)[0])
    assert torch.equal(*gradients)
