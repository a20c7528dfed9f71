"""A weight is unpacked in its own dtype, whoever asks, with whatever autocast on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import quantlora
from quantlora import Quantizer, registry


class Turned(nn.Module):
    """A weight that is kept turned: it is a product of two matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.out_features, self.in_features = 4, 4
        turn = torch.linalg.qr(torch.randn(4, 4))[0]
        self.register_buffer("turn", turn)
        self.register_buffer("turned", torch.randn(4, 4) @ turn.t())


class TurnedFormat(Quantizer):
    name, module = "turned", "torch"

    def layer_types(self) -> tuple[type[nn.Module], ...]:
        return (Turned,)

    def dequantize(self, layer: nn.Module) -> Tensor:
        return layer.turned @ layer.turn


@pytest.fixture
def layer(monkeypatch: pytest.MonkeyPatch) -> Turned:
    monkeypatch.setitem(registry().quantizers, "turned", TurnedFormat())
    torch.manual_seed(0)
    return Turned()


def test_dequantize_is_called_with_autocast_off(layer: Turned) -> None:
    wanted = layer.turned @ layer.turn
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(TurnedFormat().dequantize(layer), wanted)
        assert torch.equal(TurnedFormat().dequantize_to(layer, torch.float32), wanted)


def test_also_in_forward_and_backward(layer: Turned) -> None:
    model: Any = quantlora.wrap(nn.Sequential(layer), target_modules=["0"], r=2)
    x = torch.randn(3, 4, requires_grad=True)
    weight = (layer.turned @ layer.turn).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    assert torch.equal(y, x.bfloat16() @ weight.t())
    y.sum().backward()
    assert torch.equal(x.grad, (torch.ones(3, 4).bfloat16() @ weight).float())
