"""DoRA where the norm is zero or nearly so, and under autocast: against the formula in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import quantlora
from tests.tools.peft_oracle import relative

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))


def wrapped(weight: Tensor) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(8, 8, bias=False))
    model[0].weight.data = weight.clone()
    return quantlora.wrap(model, r=2, lora_alpha=2, use_dora=True)


def formula(model: nn.Sequential) -> Tensor:
    A, B, m = (one.detach().double() for one in model[0].adapter_tensors("default").values())
    whole = model[0].base_layer.weight.detach().double() + B @ A
    return X.double() @ (m[:, None] * whole / whole.norm(dim=1, keepdim=True)).t()


@pytest.mark.parametrize("fresh", [True, False])
def test_a_row_of_zeros_is_trained_as_in_plain_lora(fresh: bool) -> None:
    torch.manual_seed(0)
    weight = torch.randn(8, 8)
    weight[2] = 0
    model = wrapped(weight)
    if not fresh:
        nn.init.normal_(model[0].lora_B["default"].weight)
    y = model(X)
    y.square().sum().backward()
    tensors = model[0].adapter_tensors("default").values()
    assert all(one.grad is not None and one.grad.isfinite().all() for one in tensors)
    assert relative(y.detach(), X @ weight.t() if fresh else formula(model).float()) <= 1e-5
    quantlora.merge(model)
    assert relative(model(X).detach(), y.detach()) <= 1e-5


@pytest.mark.parametrize("left", [1e-1, 1e-2, 1e-3])
def test_a_weight_that_the_update_nearly_cancels(left: float) -> None:
    torch.manual_seed(0)
    A, B = torch.randn(2, 8), torch.randn(8, 2)
    model = wrapped(B @ A)
    tensors = model[0].adapter_tensors("default")
    with torch.no_grad():
        tensors["lora_A.weight"].copy_(A)
        tensors["lora_B.weight"].copy_(B * (left - 1))
    assert relative(model(X).detach().double(), formula(model)) <= 1e-6 / left


def test_the_norm_is_the_same_under_autocast() -> None:
    torch.manual_seed(0)
    model = wrapped(torch.randn(8, 8))
    nn.init.normal_(model[0].lora_B["default"].weight)
    wanted = model[0].gain("default", None)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model[0].gain("default", None), wanted)
