"""Small models of plain layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import quantlora


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(width, width, bias=False)
        self.up_proj = nn.Linear(width, 2 * width)
        self.down_proj = nn.Linear(2 * width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.q_proj(self.norm(x))
        return x + self.down_proj(torch.relu(self.up_proj(x)))


class Model(nn.Module):
    """Two blocks and a head; paths like a decoder's: ``layers.0.q_proj``."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(width) for _ in range(2))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        y: Tensor = self.head(x)
        return y


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(5, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def wrapped(model: Model) -> Callable[..., Model]:
    """The model with random A and B on ``q_proj`` and ``up_proj``, or as the fields say."""

    def make(adapter_name: str = "default", **fields: Any) -> Model:
        given = {"r": 2, "target_modules": ["q_proj", "up_proj"], "init_lora_weights": False}
        return quantlora.wrap(model, adapter_name=adapter_name, **{**given, **fields})

    return make
