"""The exact merge stays in the layer's own format where that can hold float zero-points."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import quantlora
from quantlora import AffineWeight, Quantizer, registry

CODES = torch.arange(32, dtype=torch.uint8).reshape(4, 8) % 16
WEIGHT = AffineWeight(CODES, torch.full((4, 2), 0.1), torch.full((4, 2), 7.0), 4, 4)


class Grid(nn.Module):
    def __init__(self, weight: AffineWeight) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.codes.shape
        self.grid, self.bias = weight, None
        self.register_buffer("codes", weight.codes)


class GridQuantizer(Quantizer):
    name, module = "grid", "torch"

    def layer_types(self) -> tuple[type[nn.Module], ...]:
        return (Grid,)

    def dequantize(self, layer: nn.Module) -> Tensor:
        return layer.grid.dequantize()

    def group_size(self, layer: nn.Module) -> int:
        return layer.grid.group_size

    def affine(self, layer: nn.Module) -> AffineWeight:
        return layer.grid

    def from_affine(self, weight: AffineWeight, bias: Tensor | None) -> nn.Module:
        return Grid(weight)


def test_an_exact_merge_keeps_the_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry().quantizers, "grid", GridQuantizer())
    model, x = nn.Sequential(Grid(WEIGHT)), torch.randn(2, 8)
    fields = {"target_modules": ["0"], "r": 2, "init_lora_weights": False, "use_qalora": True}
    quantlora.wrap(model, **fields)
    before = model(x)
    quantlora.merge(model, mode="exact")
    assert type(model[0].base_layer) is Grid
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)
