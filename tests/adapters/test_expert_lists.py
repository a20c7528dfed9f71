"""Experts that are layers by themselves: their rows are no samples, so no mixed batch has them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import quantlora
from quantlora import AdapterError


class Mixture(nn.Module):
    """Two experts; each token goes to one of them."""

    def __init__(self, gate: str, experts: str) -> None:
        super().__init__()
        self.names = gate, experts
        self.add_module(gate, nn.Linear(8, 2))
        self.add_module(experts, nn.ModuleList([nn.Linear(8, 8) for _ in range(2)]))
        self.shared = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        gate, experts = (getattr(self, name) for name in self.names)
        rows = x.reshape(-1, 8)
        chosen, y = gate(rows).argmax(-1), torch.zeros_like(rows)
        for number, expert in enumerate(experts):
            mine = (chosen == number).nonzero()[:, 0]
            y = y.index_add(0, mine, expert(rows[mine]))
        return y.view_as(x) + sum(one(x) for one in self.shared)


def with_two(gate: str, experts: str, targets: str) -> nn.Module:
    model = Mixture(gate, experts)
    for name in "ab":
        fields = {"target_modules": rf".*{targets}\.\d", "init_lora_weights": False}
        quantlora.wrap(model, adapter_name=name, r=2, **fields)
    return model


@pytest.mark.parametrize(("gate", "experts"), [("gate", "mlps"), ("classifier", "experts")])
def test_one_expert_of_a_mixture_cannot_be_in_a_mixed_batch(gate: str, experts: str) -> None:
    model = with_two(gate, experts, experts)
    refused = pytest.raises(AdapterError, match=rf"^{experts}\.0: this layer is one expert")
    with refused, quantlora.mixed_batch(model, ["a", "b"]):
        raise AssertionError("not refused")


def test_layers_in_other_lists_of_a_mixture_can() -> None:
    model, x = with_two("gate", "experts", "shared"), torch.randn(2, 3, 8)
    with quantlora.mixed_batch(model, ["a", "b"]):
        both = model(x)
    for sample, name in enumerate("ab"):
        quantlora.set_adapter(model, name)
        torch.testing.assert_close(both[sample], model(x)[sample])
