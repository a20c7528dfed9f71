"""The layer and its adapters as one function: its derivatives, its dtypes, its masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.graph import saved_tensors_hooks

import quantlora
from quantlora.layers.dropout import SeededDropout
from quantlora.layers.fused import Branch, FrozenProduct, adapted_linear
from quantlora.operations.reference import float64, relative

SHAPES = [(3,), (2, 3), (0,), ()]
DOUBLE = torch.float64


def given(*batch: int) -> list[Tensor]:
    """x (..., 5), the bias (4,), and A (r, 5), B (4, r) of two adapters."""
    torch.manual_seed(0)
    shapes = [(*batch, 5), (4,), (2, 5), (4, 2), (3, 5), (4, 3)]
    return [torch.randn(shape, dtype=DOUBLE).requires_grad_() for shape in shapes]


def product(x: Tensor, bias: Tensor | None, *factors: Tensor, keeps_input: bool = True) -> Tensor:
    weight = torch.linspace(-1, 1, 20, dtype=DOUBLE).view(4, 5)
    scales = (Branch(0.7, DOUBLE), Branch(-1.5, DOUBLE))
    adapters = list(zip(scales, factors[::2], factors[1::2], strict=True))
    frozen = FrozenProduct(weight.to, DOUBLE, DOUBLE)
    return adapted_linear(x, bias, frozen, adapters, keeps_input)


@pytest.mark.parametrize("batch", SHAPES)
def test_it_has_the_right_gradient(batch: tuple[int, ...]) -> None:
    assert gradcheck(product, given(*batch))


def test_it_has_the_right_second_derivative() -> None:
    assert gradgradcheck(product, given(3))


@pytest.mark.parametrize("frozen", range(6))
def test_what_needs_no_gradient_gets_none(frozen: int) -> None:
    tensors = given(3)
    tensors[frozen].requires_grad_(False)
    product(*tensors).sum().backward()
    assert [i for i, tensor in enumerate(tensors) if tensor.grad is None] == [frozen]


def test_the_input_is_not_kept_where_no_down_projection_is_trained() -> None:
    x, bias, *factors = given(64)
    for A in factors[::2]:
        A.requires_grad_(False)
    kept: list[Any] = []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        y = product(x, bias, *factors, keeps_input=False)
    assert max(tensor.numel() for tensor in kept) == 64 * 3  # A(x), of rank 3
    trained = [x, bias, *factors[1::2]]
    found = torch.autograd.grad(y.sin().sum(), trained)
    wanted = torch.autograd.grad(product(x, bias, *factors).sin().sum(), trained)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    (slope,) = torch.autograd.grad(product(x, None, *factors).sum(), x, create_graph=True)
    assert slope.requires_grad
    y = product(x, bias, *factors, keeps_input=False).sum()
    with pytest.raises(RuntimeError, match="no second derivative where no A is trained"):
        torch.autograd.grad(y, x, create_graph=True)


@pytest.mark.parametrize("shape", [(2, 3), (3,)], ids=str)
def test_the_output_may_be_changed_in_place(shape: tuple[int, ...]) -> None:
    tensors = given(*shape)
    wanted = torch.autograd.grad((product(*tensors) + 1).mul(2).sin().sum(), tensors)
    y = product(*tensors)
    y += 1
    y[..., :2] *= 2
    y[..., 2:] *= 2
    for found, grad in zip(torch.autograd.grad(y.sin().sum(), tensors), wanted, strict=True):
        torch.testing.assert_close(found, grad)


def test_an_input_that_was_changed_in_place_is_an_error() -> None:
    tensors = given(3)
    x = tensors[0] * 1
    y = product(x, *tensors[1:])
    x += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# -- in the layer

HALF = [torch.bfloat16, torch.float16]


def wrapped(dtype: torch.dtype, **fields: Any) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 24)).to(dtype)
    fields = {"r": 4, "init_lora_weights": False, "target_modules": ["0"], **fields}
    return quantlora.wrap(model, **fields).train()[0]


def derivatives(layer: Any, x: Tensor) -> list[Tensor]:
    """The output and the gradients of x, A and B."""
    x = x.detach().requires_grad_()
    factors = [factor.weight for factor in layer.factors("default")]
    y = layer(x)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *factors])]


def reference(layer: Any, x: Tensor, mask: Tensor | float = 1.0) -> list[Tensor]:
    """The same in float64, by the formula."""
    x = float64(x).requires_grad_()
    A, B = (float64(factor.weight).requires_grad_() for factor in layer.factors("default"))
    base = x @ float64(layer.base_layer.weight).t() + float64(layer.bias)
    y = base + layer.scaling["default"] * (x * mask) @ A.t() @ B.t()
    return [y, *torch.autograd.grad(y.square().sum(), [x, A, B])]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("choice", ["input", "float32"])
def test_half_precision_is_near_float64(
    dtype: torch.dtype, choice: str, products: Callable[[str], str]
) -> None:
    products(choice)
    layer, x = wrapped(dtype), torch.randn(3, 7, 32).to(dtype)
    pairs = zip(derivatives(layer, x), reference(layer, x), strict=True)
    assert max(relative(found, wanted) for found, wanted in pairs) <= 2e-2


@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_have_the_dtypes_of_their_tensors(autocast: bool) -> None:
    layer = wrapped(torch.float32 if autocast else torch.bfloat16)
    x = torch.randn(3, 32, dtype=layer.base_layer.weight.dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y, grad_x, *factors = derivatives(layer, x)
    assert (y.dtype, grad_x.dtype) == (torch.bfloat16, x.dtype)
    assert {grad.dtype for grad in factors} == {torch.float32}


@pytest.mark.parametrize("p", [0.0, 0.1])
def test_of_the_inputs_size_only_the_input_is_kept(p: float) -> None:
    layer, x = wrapped(torch.bfloat16, lora_dropout=p), torch.randn(3, 7, 32).bfloat16()
    saved: list[Tensor] = []
    with saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(x.requires_grad_())
    shapes = sorted(tuple(tensor.shape) for tensor in saved)
    assert shapes == [(3, 7, 32), (4, 32), (21, 4), (24, 4)]
    assert next(t for t in saved if t.ndim == 3).data_ptr() == x.data_ptr()


# -- dropout


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_as_many_are_dropped_as_is_asked(p: float) -> None:
    torch.manual_seed(0)
    dropout = SeededDropout.drawn(p)
    kept = dropout(torch.ones(1001, 999, dtype=torch.bfloat16)) != 0
    assert abs(1 - float(kept.double().mean()) - p) < 3e-3
    assert float(kept.double().mean(0).std()) < 2 * (p * (1 - p) / 1001) ** 0.5
    assert abs(dropout.scale * (1 - p) - 1) < 1e-3


def test_every_call_of_the_layer_drops_others() -> None:
    layer, x = wrapped(torch.bfloat16, lora_dropout=0.5), torch.ones(4, 32).bfloat16()
    assert not torch.equal(layer(x), layer(x))


def test_a_seed_of_torch_settles_the_mask() -> None:
    layer, x = wrapped(torch.bfloat16, lora_dropout=0.5), torch.ones(4, 32).bfloat16()
    outputs = [(torch.manual_seed(3), layer(x))[1] for _ in range(2)]
    assert torch.equal(*outputs)


@pytest.mark.parametrize("dtype", HALF)
def test_the_gradient_under_dropout_is_that_of_the_same_mask(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = wrapped(dtype, lora_dropout=0.3), torch.randn(5, 32).to(dtype)
    dropout = SeededDropout.drawn(0.3)
    monkeypatch.setattr(SeededDropout, "drawn", lambda p: dropout)
    mask = float64(dropout(torch.ones_like(x))) * dropout.scale
    pairs = zip(derivatives(layer, x), reference(layer, x, mask), strict=True)
    assert max(relative(found, wanted) for found, wanted in pairs) <= 2e-2


def test_the_second_derivative_under_dropout_is_that_of_the_same_mask() -> None:
    layer, x = wrapped(torch.bfloat16, lora_dropout=0.5), torch.randn(5, 32).bfloat16()
    x.requires_grad_()
    y = layer(x).float().sin().sum()
    (first,) = torch.autograd.grad(y, x, create_graph=True)
    torch.testing.assert_close(
        first, torch.autograd.grad(y, x, retain_graph=True)[0], rtol=0.05, atol=0.05
    )
    assert torch.autograd.grad(first.float().square().sum(), x)[0].isfinite().all()


# -- DoRA: the gain is put into the product's memory


def dora(dtype: torch.dtype, shift: float = 0.1) -> Any:
    """A layer whose gains are about 1 + shift."""
    layer = wrapped(dtype, use_dora=True)
    with torch.no_grad():
        layer.adapter_tensors("default")["lora_magnitude_vector"].mul_(1 + shift)
    return layer


def dora_derivatives(layer: Any, x: Tensor, after: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """The output and the gradients of x, A, B and m."""
    x, tensors = x.detach().requires_grad_(), layer.adapter_tensors("default").values()
    y = layer(x)
    loss = after(y).square().sum()
    return [y.detach(), *torch.autograd.grad(loss, [x, *tensors])]


def dora_reference(layer: Any, x: Tensor, after: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """The same in float64, by the formula; the norm is a constant."""
    x = float64(x).requires_grad_()
    tensors = [float64(t).requires_grad_() for t in layer.adapter_tensors("default").values()]
    A, B, m = tensors
    W = float64(layer.base_layer.weight) + layer.scaling["default"] * B @ A
    y = x @ (m / W.norm(dim=1).detach()).mul(W.t()) + float64(layer.bias)
    loss = after(y).square().sum()
    return [y.detach(), *torch.autograd.grad(loss, [x, *tensors])]


@pytest.mark.parametrize("after", ["kept", "in place"])
@pytest.mark.parametrize("shift", [0.1, -1.0, -0.999, 3.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF])
def test_doras_gradients_are_near_float64(dtype: torch.dtype, shift: float, after: str) -> None:
    """A gain of 0, small and large ones, and an output that somebody changes."""
    layer, x = dora(dtype, shift), torch.randn(3, 7, 32).to(dtype)
    change = (lambda y: y.mul_(2)) if after == "in place" else (lambda y: y * 2)
    pairs = zip(dora_derivatives(layer, x, change), dora_reference(layer, x, change), strict=True)
    limit = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 3e-2)
    for found, wanted in pairs:
        assert (float64(found) - wanted).norm() <= limit * max(float(wanted.norm()), 1.0)


def test_doras_product_is_kept_in_the_outputs_memory() -> None:
    layer, x = dora(torch.bfloat16), torch.randn(3, 7, 32).bfloat16()
    layer.base_layer.bias = None
    saved: list[Tensor] = []
    with saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = layer(x.requires_grad_())
    sized = [tensor for tensor in saved if tensor.shape == y.shape]
    assert [tensor.data_ptr() for tensor in sized] == [y.data_ptr()]


def test_doras_second_derivative_is_right() -> None:
    layer, x = dora(torch.float64), torch.randn(3, 32, dtype=DOUBLE).requires_grad_()
    assert gradgradcheck(lambda x: layer(x).sin(), [x])
