"""DoRA while text is generated: its gains are computed once, and again after every change."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import quantlora
from quantlora.operations import reference


def wrapped(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 16, dtype=dtype))
    fields: dict[str, Any] = {"r": 4, "target_modules": ["0"], "use_dora": True}
    model = quantlora.wrap(model, backend="normalfloat", **fields)
    with torch.no_grad():
        model[0].lora_B["default"].weight.normal_()
        model[0].lora_magnitude_vector["default"].weight.mul_(1.3)
    return model.eval()


def wanted(model: nn.Module, x: Tensor) -> Tensor:
    layer = model[0]
    A, B, m = (t.detach().double() for t in layer.adapter_tensors("default").values())
    whole = layer.dequantize().double() + layer.scaling["default"] * (B @ A)
    gain = m / whole.norm(dim=1)
    return x.double() @ (gain[:, None] * whole).t() + layer.base_bias.double()


@torch.no_grad()
def off(model: nn.Module) -> float:
    x = torch.randn(1, 32)
    return reference.relative(model(x), wanted(model, x))


def train(model: nn.Module) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()(torch.randn(3, 32)).square().mean().backward()
    optimizer.step()
    model.eval()


def swapped(model: nn.Module) -> None:
    model[0].lora_A["default"].weight = nn.Parameter(torch.randn(4, 32))


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "training": train,
    "another A": swapped,
    "a scale": lambda model: model[0].scaling.update(default=0.3),
    "in place": lambda model: torch.no_grad()(model[0].lora_B["default"].weight.zero_)(),
    "by its data": lambda model: model[0].lora_A["default"].weight.data.mul_(3),
    "the base in place": lambda model: model[0].base_layer.packed.bitwise_not_(),
    "merged and back": lambda model: (quantlora.merge(model), quantlora.unmerge(model)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_token_after_a_change_is_right(change: str) -> None:
    model = wrapped()
    assert off(model) < 1e-5
    CHANGES[change](model)
    assert off(model) < 1e-5
    assert off(model) < 1e-5


def test_further_tokens_unpack_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wrapped(torch.bfloat16)
    x, unpacked = torch.randn(1, 32, dtype=torch.bfloat16), []
    own = type(model[0].base_layer).dequantize
    with torch.no_grad():
        model(x)  # gives the gain
        model(x)  # makes the copy of the base

        def noted(layer: Any, *args: Any) -> Tensor:
            unpacked.append(layer)
            return own(layer, *args)

        monkeypatch.setattr(type(model[0].base_layer), "dequantize", noted)
        model(x)
    assert not unpacked


def test_gradients_are_those_of_never_having_generated() -> None:
    found = []
    for generates in (False, True):
        model = wrapped()
        if generates:
            off(model)
        torch.manual_seed(1)
        model.train()(torch.randn(3, 32)).square().sum().backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_has_gains_of_its_own(copied: Callable[[nn.Module], nn.Module]) -> None:
    model = wrapped()
    off(model)
    other = copied(model)
    train(other)
    assert off(other) < 1e-5
    assert off(model) < 1e-5
