"""Scales by group of inputs, by block, along the other axis; QA-LoRA merges into all of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import quantlora
from quantlora import AffineWeight, BackendError, Quantizer, registry, spread, spread_blocks

#: Outputs and inputs of a group, over codes (10, 12): also such that do not divide.
BLOCKS = [(1, 4), (1, 5), (5, 4), (4, 5), (5, 1), (10, 12), (16, 16)]


def weight_in(block: tuple[int, int], shape: tuple[int, int] = (10, 12)) -> AffineWeight:
    torch.manual_seed(0)
    size = [-(-n // b) for n, b in zip(shape, block, strict=True)]
    codes = torch.randint(0, 16, shape, dtype=torch.uint8)
    scales, zeros = torch.rand(size).double() + 0.1, torch.rand(size).double() * 15
    return AffineWeight(codes, scales, zeros, 4, block[1], out_group_size=block[0])


def one_by_one(weight: AffineWeight) -> Tensor:
    """The definition, element by element."""
    out, width = weight.codes.shape
    wanted = torch.zeros(out, width, dtype=torch.float64)
    for o in range(out):
        for i in range(width):
            where = o // weight.out_group_size, i // weight.group_size
            wanted[o, i] = (int(weight.codes[o, i]) - weight.zeros[where]) * weight.scales[where]
    return wanted


@pytest.mark.parametrize("block", BLOCKS)
def test_a_weight_is_that_of_its_definition(block: tuple[int, int]) -> None:
    weight = weight_in(block)
    assert torch.allclose(weight.dequantize(), one_by_one(weight), rtol=1e-14, atol=0)


@pytest.mark.parametrize("block", BLOCKS)
def test_by_row_is_the_same_weight(block: tuple[int, int]) -> None:
    rows = weight_in(block).by_row()
    assert rows.scales.shape[0] == 10
    assert torch.equal(rows.dequantize(), weight_in(block).dequantize())


def test_groups_may_have_any_order_on_both_axes() -> None:
    plain = weight_in((5, 4))
    index, out_index = torch.arange(12) // 4, torch.arange(10) // 5
    columns, rows = torch.randperm(12), torch.randperm(10)
    turned = replace(
        plain,
        codes=plain.codes[rows][:, columns],
        group_index=index[columns],
        out_group_index=out_index[rows],
    )
    assert torch.equal(turned.dequantize(), plain.dequantize()[rows][:, columns])


def test_scales_of_another_shape_are_refused() -> None:
    plain = weight_in((5, 4))
    with pytest.raises(
        BackendError, match="scales are 3 x 2, which are not the groups of 5 outputs"
    ):
        replace(plain, scales=plain.scales.t())


@pytest.mark.parametrize("block", BLOCKS)
def test_block_scales_are_spread_over_their_blocks(block: tuple[int, int]) -> None:
    scales = weight_in(block).scales
    wanted = torch.kron(scales, torch.ones(block, dtype=scales.dtype))[:10, :12]
    assert torch.equal(spread_blocks(scales, (10, 12), block), wanted)


def test_the_last_group_of_inputs_may_be_smaller() -> None:
    assert spread(torch.tensor([1, 2]), 5, None, 4).tolist() == [1, 1, 1, 1, 2]


# -- through a layer


class Grid(nn.Module):
    def __init__(self, grid: AffineWeight) -> None:
        super().__init__()
        self.out_features, self.in_features = grid.codes.shape
        self.grid = grid
        self.register_buffer("codes", grid.codes)


class Blocks(Quantizer):
    name, module = "blocks", "torch"

    def layer_types(self) -> tuple[type[nn.Module], ...]:
        return (Grid,)

    def dequantize(self, layer: nn.Module) -> Tensor:
        return layer.grid.dequantize().float()

    def affine(self, layer: nn.Module) -> AffineWeight:
        return layer.grid

    def group_size(self, layer: nn.Module) -> int:
        return layer.grid.group_size

    def from_affine(self, weight: AffineWeight, bias: Tensor | None) -> nn.Module:
        return Grid(weight)

    def describe(self, layer: nn.Module) -> dict[str, Any]:
        return {"bits": 4, "block_size": (layer.grid.out_group_size, layer.grid.group_size)}


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> nn.Sequential:
    monkeypatch.setitem(registry().quantizers, "blocks", Blocks())
    return nn.Sequential(Grid(weight_in((5, 4))))


def test_qalora_merges_exactly_into_blocks(model: nn.Sequential) -> None:
    fields: dict[str, Any] = {"use_qalora": True, "init_lora_weights": False}
    quantlora.wrap(model, target_modules=["0"], r=2, **fields)
    x = torch.randn(3, 12)
    before = model(x)
    report = quantlora.merge(model, mode="exact")
    assert max(layer.loss for layer in report.layers) < 1e-6
    assert model[0].base_layer.grid.out_group_size == 1
    assert torch.allclose(model(x), before, atol=1e-5)


def test_lists_in_describe_are_shown_saved_and_no_difference(
    model: nn.Sequential, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    assert "block_size 5 x 4" in str(quantlora.explain(model, target_modules=["0"]))
    quantlora.save_adapter(quantlora.wrap(model, target_modules=["0"], r=2), tmp_path)
    note = json.loads((tmp_path / "quantlora.json").read_text())
    assert note["formats"][0]["block_size"] == [5, 4]
    quantlora.load_adapter(nn.Sequential(Grid(weight_in((5, 4)))), tmp_path)
    assert not [one for one in recwarn if "another base" in str(one.message)]
