"""The QA-LoRA layer: its groups, its gradients, its exact merge."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import quantlora
from quantlora import pool

BITS = (2, 3, 4, 8)
WIDTH, OUT, GROUP = 64, 32, 16


def base(bits: int = 4, ordered: bool = False) -> nn.Module:
    """A uniform layer; ``ordered``: its groups are not neighbours."""
    torch.manual_seed(bits)
    quantizer = quantlora.registry().quantizer("normalfloat")
    layer = quantizer.quantize(
        nn.Linear(WIDTH, OUT), bits=bits, quant_type="uniform", block_size=GROUP
    )
    weight = quantizer.affine(layer)
    if not ordered or weight is None:
        return layer
    index = torch.randperm(WIDTH) // GROUP
    return quantizer.from_affine(replace(weight, group_index=index), quantizer.bias(layer))


def wrapped(layer: nn.Module, **fields: Any) -> nn.Sequential:
    settings = {"r": 4, "lora_alpha": 8, "use_qalora": True, "init_lora_weights": False}
    return quantlora.wrap(nn.Sequential(layer), target_modules=["0"], **{**settings, **fields})


def relative(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())


@pytest.fixture(params=product(BITS, (False, True)), ids=lambda p: f"{p[0]}bit-ordered{p[1]:d}")
def model(request: pytest.FixtureRequest) -> nn.Sequential:
    return wrapped(base(*request.param))


def test_lora_a_sees_the_sum_over_each_group(model: nn.Sequential) -> None:
    layer, x = model[0], torch.randn(3, 5, WIDTH)
    index = layer.quantizer.group_index(layer.base_layer)
    index = torch.arange(WIDTH) // GROUP if index is None else index
    sums = torch.stack([x[..., index == g].sum(-1) for g in range(WIDTH // GROUP)], -1)
    A, B = layer.factors("default")
    expected = x @ layer.dequantize().T + layer.bias + 2.0 * (sums @ A.weight.T @ B.weight.T)
    assert relative(model(x), expected) < 1e-6


def test_gradients_agree_with_float64(model: nn.Sequential) -> None:
    layer, x = model[0], torch.randn(6, WIDTH, requires_grad=True)
    model(x).square().sum().backward()
    A, B = (f.weight.detach().double().requires_grad_() for f in layer.factors("default"))
    x64 = x.detach().double().requires_grad_()
    pooled = pool(x64, WIDTH // GROUP, layer.quantizer.group_index(layer.base_layer))
    y = x64 @ layer.dequantize().double().T + layer.bias + 2.0 * (pooled @ A.T @ B.T)
    y.square().sum().backward()
    mine = [x, *(f.weight for f in layer.factors("default"))]
    assert max(relative(a.grad, b.grad) for a, b in zip(mine, (x64, A, B), strict=True)) < 1e-5


@pytest.mark.parametrize("shape", [(WIDTH,), (3, WIDTH), (2, 3, WIDTH), (2, 1, 3, WIDTH)])
def test_any_layout_of_the_input_gives_the_same(shape: tuple[int, ...]) -> None:
    model, x = wrapped(base()), torch.randn(shape)
    flat = torch.stack([model(row) for row in x.reshape(-1, WIDTH)]).view(*shape[:-1], OUT)
    scattered = torch.randn(*shape, 2)[..., 0].copy_(x)  # not contiguous
    assert relative(model(x), flat) < 1e-6
    assert relative(model(scattered), flat) < 1e-6


def test_nothing_of_a_weights_size_is_kept_for_backward(model: nn.Sequential) -> None:
    kept: list[int] = []
    x = torch.randn(3, WIDTH, requires_grad=True)
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, _same)
    with hooks:
        model(x).sum().backward()
    assert sum(kept) < WIDTH * OUT / 2


def _same(tensor: Tensor) -> Tensor:
    return tensor


def test_the_exact_merge_leaves_the_output_as_it_was(model: nn.Sequential) -> None:
    x = torch.randn(4, WIDTH)
    before = model(x)
    report = quantlora.merge(model, mode="exact")
    assert relative(model(x), before) < 1e-6
    assert report.layers[0].loss < 1e-6


def test_the_exact_merge_keeps_the_bits(model: nn.Sequential) -> None:
    bits = model[0].base_layer.bits
    plain = quantlora.merge_and_unload(model, mode="exact")
    assert plain[0].bits == bits
    assert plain[0].packed.numel() == WIDTH * OUT * bits // 8


def test_unmerging_restores_the_packed_bytes(model: nn.Sequential) -> None:
    before = {k: v.clone() for k, v in model.state_dict().items()}
    quantlora.merge(model, mode="exact")
    quantlora.unmerge(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_several_adapters_merge_exactly_together() -> None:
    model = wrapped(base())
    fields = {"r": 2, "use_qalora": True, "qalora_group_size": 2 * GROUP}
    quantlora.wrap(model, adapter_name="b", target_modules=["0"], init_lora_weights=False, **fields)
    quantlora.set_adapter(model, ["default", "b"])
    x = torch.randn(4, WIDTH)
    before = model(x)
    quantlora.merge(model, mode="exact")
    assert relative(model(x), before) < 1e-6


def test_a_group_of_zeros_can_hold_an_update() -> None:
    layer = base()
    weight = quantlora.registry().quantizer("normalfloat").affine(layer)
    assert weight is not None
    dead = replace(weight, scales=weight.scales.clone().index_fill_(1, torch.tensor([1]), 0.0))
    model = wrapped(quantlora.registry().quantizer("normalfloat").from_affine(dead, None))
    x = torch.randn(4, WIDTH)
    before = model(x)
    quantlora.merge(model, mode="exact")
    assert relative(model(x), before) < 1e-6


def test_dropout_is_off_in_eval_and_on_in_train() -> None:
    model, x = wrapped(base(), lora_dropout=0.5), torch.randn(4, WIDTH)
    model.eval()
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


def test_a_plain_adapter_joins_and_has_no_exact_merge() -> None:
    model = wrapped(base())
    quantlora.wrap(model, adapter_name="plain", r=2, target_modules=["0"])
    assert model[0].groups("plain") == WIDTH
    with pytest.raises(quantlora.MergeError, match=r"plain is plain LoRA.*mode=\"requantize\""):
        quantlora.merge(model, ["plain"], mode="exact")


@pytest.mark.parametrize("size", [8, 24, 48])
def test_a_group_size_that_does_not_fit_is_an_error(size: int) -> None:
    with pytest.raises(quantlora.ConfigError, match=f"qalora_group_size={size} does not fit"):
        wrapped(base(), qalora_group_size=size)


def test_a_format_without_groups_is_an_error() -> None:
    with pytest.raises(quantlora.ConfigError, match="'float' has none"):
        wrapped(nn.Linear(WIDTH, OUT))


def test_a_format_without_zero_points_has_no_exact_merge() -> None:
    quantizer = quantlora.registry().quantizer("normalfloat")
    model = wrapped(quantizer.quantize(nn.Linear(WIDTH, OUT), block_size=GROUP))
    with pytest.raises(quantlora.MergeError, match="no zero-points"):
        quantlora.merge(model, mode="exact")


def test_plain_lora_has_no_exact_merge() -> None:
    model = wrapped(base(), use_qalora=False)
    with pytest.raises(quantlora.MergeError, match="'lora' has no exact merge"):
        quantlora.merge(model, mode="exact")


def test_a_saved_adapter_comes_back_bit_for_bit(tmp_path: Path, model: nn.Sequential) -> None:
    x = torch.randn(4, WIDTH)
    before = model(x)
    quantlora.save_adapter(model, tmp_path)
    fresh = quantlora.unload(model)
    quantlora.load_adapter(fresh, tmp_path)
    assert torch.equal(fresh(x), before)


def test_the_file_is_in_pefts_convention(tmp_path: Path) -> None:
    model = wrapped(base())
    quantlora.save_adapter(model, tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    # PEFT: scale = alpha / r, times the number of groups, on the mean over each group.
    groups = WIDTH // GROUP
    assert written["qalora_group_size"] == GROUP
    assert written["lora_alpha"] / written["r"] * groups / GROUP == pytest.approx(8 / 4)


@pytest.mark.parametrize("ordered", [False, True])
def test_the_side_file_names_the_convention(ordered: bool, tmp_path: Path) -> None:
    quantlora.save_adapter(wrapped(base(ordered=ordered)), tmp_path)
    (facts,) = json.loads((tmp_path / "quantlora.json").read_text())["formats"]
    assert facts["qalora_scale"] == "PEFT's"
    assert ("PEFT does not know" in facts["qalora_groups"]) == ordered


def test_groups_in_another_order_are_another_base(tmp_path: Path) -> None:
    quantlora.save_adapter(wrapped(base(ordered=True)), tmp_path)
    with pytest.warns(
        quantlora.AdapterWarning, match="qalora_groups was .*g_idx.* is 'neighbours'"
    ):
        quantlora.load_adapter(nn.Sequential(base()), tmp_path)


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_group_sum_beyond_half_precision_is_finite(ordered: bool, autocast: bool) -> None:
    model = wrapped(base(ordered=ordered), init_lora_weights=False)
    with torch.no_grad():
        model[0].lora_A["default"].weight.mul_(1e-4)
    x = torch.full((2, WIDTH), 6e4)
    wanted = model[0].delta("default", x, x, None)
    with torch.autocast("cpu", torch.float16, enabled=autocast):
        found = model[0].delta("default", x.half(), x, None)
    assert relative(found.float(), wanted) <= 5e-3


def test_a_format_whose_groups_do_not_divide_the_width_is_named() -> None:
    model = nn.Sequential(nn.Linear(96, 8))
    with pytest.raises(quantlora.ConfigError, match=r"divide the 96 inputs.* are of 64"):
        quantlora.wrap(
            model,
            backend="normalfloat",
            use_qalora=True,
            quantize_options={"quant_type": "uniform"},
        )
