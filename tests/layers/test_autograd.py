"""The two products and their backward, against finite differences in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.graph import saved_tensors_hooks

from quantlora.layers.autograd import frozen_linear, low_rank, working_dtype

SHAPES = [(3,), (2, 3), (0,), ()]


def factors(*batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """x (..., 5), A (2, 5), B (4, 2)."""
    torch.manual_seed(0)
    x, A, B = (torch.randn(size, dtype=torch.float64) for size in ((*batch, 5), (2, 5), (4, 2)))
    return x.requires_grad_(), A.requires_grad_(), B.requires_grad_()


@pytest.mark.parametrize("batch", SHAPES)
def test_low_rank_has_the_right_gradient(batch: tuple[int, ...]) -> None:
    assert gradcheck(lambda x, A, B: low_rank(x, A, B, 0.7), factors(*batch))


def test_low_rank_has_the_right_second_derivative() -> None:
    assert gradgradcheck(lambda x, A, B: low_rank(x, A, B, 0.7), factors(3))


@pytest.mark.parametrize("batch", SHAPES)
def test_frozen_linear_has_the_right_gradient(batch: tuple[int, ...]) -> None:
    weight = torch.randn(4, 5, dtype=torch.float64)
    assert gradcheck(lambda x: frozen_linear(x, weight.to), factors(*batch)[:1])


def test_frozen_linear_has_the_right_second_derivative() -> None:
    weight = torch.randn(4, 5, dtype=torch.float64)
    assert gradgradcheck(lambda x: frozen_linear(x, weight.to).sin(), factors(3)[:1])


@pytest.mark.parametrize("frozen", ["x", "A", "B"])
def test_what_needs_no_gradient_gets_none(frozen: str) -> None:
    given = dict(zip("xAB", factors(3), strict=True))
    given[frozen].requires_grad_(False)
    low_rank(*given.values(), 0.7).sum().backward()
    assert {name for name, one in given.items() if one.grad is None} == {frozen}


def test_frozen_linear_saves_nothing() -> None:
    x, weight = factors(3)[0], torch.randn(4, 5, dtype=torch.float64)
    saved: list[Tensor] = []
    with saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        frozen_linear(x, weight.to)
    assert not saved


def test_frozen_linear_asks_for_its_weight_again_in_backward() -> None:
    """What an optimizer, FSDP or offloading did to the weight in between is seen."""
    x, weight = factors(3)[0], torch.randn(4, 5, dtype=torch.float64)
    y = frozen_linear(x, weight.to)
    weight.zero_()
    y.sum().backward()
    assert not x.grad.any()


def test_low_rank_saves_the_input_as_it_came() -> None:
    """No float32 copy of a half-precision input, and of the product only rank r."""
    x, A, B = (one.detach().float() for one in factors(3))
    half = x.bfloat16()
    saved: list[Tensor] = []
    with saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        low_rank(half, A.requires_grad_(), B, 0.7)
    assert sorted(tuple(one.shape) for one in saved) == [(2, 5), (3, 2), (3, 5), (4, 2)]
    assert next(one for one in saved if one.shape == (3, 5)).dtype == torch.bfloat16


def test_the_gradients_come_in_the_dtypes_of_their_tensors() -> None:
    x, A, B = (one.detach().float() for one in factors(3))
    x = x.bfloat16()
    for one in (x, A, B):
        one.requires_grad_()
    low_rank(x, A, B, 0.7).sum().backward()
    assert [one.grad.dtype for one in (x, A, B)] == [torch.bfloat16, torch.float32, torch.float32]


def test_autocast_decides_the_dtype_but_not_over_float64() -> None:
    x = torch.zeros(1)
    assert working_dtype(x, torch.float32) == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert working_dtype(x, torch.float32) == torch.bfloat16
        assert working_dtype(x.double(), torch.float64) == torch.float64
