"""Adapters that no gradient reaches are named, once, in any training loop."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import quantlora
from quantlora.errors import AdapterWarning


class HalfUsed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.used(x)
        return y


def step(model: nn.Module, optimizer: Any) -> None:
    model(torch.randn(2, 8)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [one for one in model.parameters() if one.requires_grad]


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_an_adapter_without_a_gradient_is_named_after_the_first_step(kind: Any) -> None:
    model = quantlora.wrap(HalfUsed(), r=2)
    optimizer = kind(trained(model), lr=0.1)
    with pytest.warns(AdapterWarning, match=r"^unused\.lora_B\.weight \(default\): no gradient"):
        step(model, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(model, optimizer)


def test_nothing_is_said_where_all_are_used_or_nothing_went_backward() -> None:
    model = quantlora.wrap(HalfUsed(), r=2, target_modules=["used"])
    optimizer = torch.optim.SGD(trained(model), lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
        step(model, optimizer)


def test_an_optimizer_of_another_model_says_nothing() -> None:
    quantlora.wrap(HalfUsed(), r=2)
    other = nn.Linear(8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(other, torch.optim.SGD(other.parameters(), lr=0.1))
