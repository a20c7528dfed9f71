"""QA-LoRA on real GPTQ layers: the three ways to merge it."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor, nn

import quantlora
from plugins.gptq.tests.gptq_loading import needs_library

pytestmark = needs_library

WIDTH, OUT, GROUP = 128, 64, 32


def base(bits: int, ordered: bool) -> nn.Module:
    """A layer of the installed library; ``ordered``: its groups are not neighbours (desc_act)."""
    torch.manual_seed(bits)
    quantizer, linear = quantlora.registry().quantizer("gptq"), nn.Linear(WIDTH, OUT)
    layer = quantizer.quantize(linear, bits=bits, group_size=GROUP, sym=False)
    if ordered:
        layer.g_idx = layer.g_idx[torch.randperm(WIDTH)]
        layer = quantizer.quantize(linear, like=layer)
    return layer


@pytest.fixture(params=product((2, 3, 4, 8), (False, True)), ids=lambda p: f"{p[0]}bit-{p[1]:d}")
def model(request: pytest.FixtureRequest) -> nn.Sequential:
    plain = nn.Sequential(base(*request.param))
    fields = {"r": 4, "lora_alpha": 1, "use_qalora": True, "init_lora_weights": False}
    return quantlora.wrap(plain, target_modules=["0"], **fields)


def relative(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("mode", ["exact", "dequantize"])
def test_merging_without_loss_leaves_the_output_as_it_was(mode: str, model: nn.Sequential) -> None:
    x = torch.randn(2, 3, WIDTH)
    before = model(x)
    quantlora.merge(model, mode=mode)
    assert relative(model(x), before) < 1e-6


def test_the_exact_merge_keeps_codes_and_scales(model: nn.Sequential) -> None:
    packed = model[0].quantizer.affine(model[0].base_layer)
    quantlora.merge(model, mode="exact")
    merged = model[0].quantizer.affine(model[0].base_layer)
    assert torch.equal(merged.codes, packed.codes)
    assert torch.equal(merged.scales, packed.scales)


@pytest.mark.filterwarnings("ignore:merging lost most")
def test_the_loss_of_packed_zero_points_is_measured(model: nn.Sequential) -> None:
    plain = model[0].dequantize().double()
    wanted = plain + model[0].delta_weight("default", plain)
    (report,) = quantlora.merge(model, mode="requantize").layers
    error = model[0].quantizer.dequantize(model[0].base_layer).double() - wanted
    assert report.format == "gptq"
    assert report.loss == pytest.approx((error.norm() / (wanted - plain).norm()).item(), rel=1e-4)


@pytest.mark.filterwarnings("ignore:merging lost most")
def test_packing_loses_no_more_than_rounding_the_zero_points(model: nn.Sequential) -> None:
    layer = model[0]
    packed, plain = layer.quantizer.affine(layer.base_layer), layer.dequantize()
    wanted = plain + layer.delta_weight("default", plain)
    quantlora.merge(model, mode="exact")
    moved = layer.quantizer.affine(layer.base_layer).zeros
    rounded = replace(packed, zeros=moved.round().clamp(1, 2**packed.bits - 1)).dequantize()
    quantlora.unmerge(model)
    (report,) = quantlora.merge(model, mode="requantize").layers
    assert report.loss <= 1.0001 * ((rounded - wanted).norm() / (wanted - plain).norm()).item()
