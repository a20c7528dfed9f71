"""The packing trap: right in every order of upstream's eval forward, wrap, train, save and merge.

``repack`` brings a layer into the CPU layout by upstream's forward on CPUs that have AVX512-BF16,
and by upstream's packing function on all.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

import quantlora
from quantlora import Quantizer
from quantlora.errors import ChangedBaseError
from quantlora.testing.models import tiny_llama

#: A scale comes back rounded to bfloat16; double quantization adds a little.
ROUNDING = 2e-3

Repack = Callable[[nn.Module], None]

needs_layout = pytest.mark.skipif(
    not hasattr(bnb.functional, "_convert_weight_packed_for_cpu"),
    reason="this bitsandbytes has no CPU layout",
)

FORMS = [
    pytest.param({"quant_type": kind, "compress_statistics": nested, "quant_storage": storage})
    for kind in ("nf4", "fp4")
    for nested in (True, False)
    for storage in (torch.uint8, torch.bfloat16, torch.float16, torch.float32)
]


def linear(dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(128, 64, dtype=dtype)


def distance(actual: Tensor, wanted: Tensor) -> float:
    actual, wanted = actual.detach().double(), wanted.detach().double()
    return float((actual - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("options", FORMS)
def test_dequantize_undoes_the_layout(
    four_bit: Quantizer, repack: Repack, options: dict[str, Any]
) -> None:
    layer = four_bit.quantize(linear(), **options)
    wanted, codes = four_bit.dequantize(layer), layer.weight.data.clone()
    repack(layer)
    assert distance(four_bit.dequantize(layer), wanted) < ROUNDING
    assert layer.weight.dtype == codes.dtype
    assert torch.equal(layer.weight.data.view(torch.uint8), codes.view(torch.uint8))


@pytest.mark.parametrize("options", FORMS)
def test_upstreams_own_functions_are_right_again(
    four_bit: Quantizer, repack: Repack, options: dict[str, Any]
) -> None:
    layer = four_bit.quantize(linear(), **options)
    wanted = four_bit.dequantize(layer)
    repack(layer)
    four_bit.prepare(layer, "proj")
    state = layer.weight.quant_state
    assert layer.quant_state is state
    assert state.nested == options["compress_statistics"]
    assert distance(bnb.functional.dequantize_4bit(layer.weight.data, state), wanted) < ROUNDING


def test_scales_of_a_bfloat16_weight_come_back_exactly(four_bit: Quantizer, repack: Repack) -> None:
    layer = four_bit.quantize(linear(torch.bfloat16), compress_statistics=False)
    wanted = four_bit.dequantize(layer)
    repack(layer)
    assert torch.equal(four_bit.dequantize(layer), wanted)


def test_it_can_be_repacked_and_undone_many_times(four_bit: Quantizer, repack: Repack) -> None:
    layer = four_bit.quantize(linear())
    repack(layer)
    once = four_bit.dequantize(layer)
    for _ in range(3):
        repack(layer)
        again = four_bit.dequantize(layer)
    assert distance(again, once) < ROUNDING


def test_a_copy_of_a_repacked_layer_is_undone_by_itself(
    four_bit: Quantizer, repack: Repack
) -> None:
    """`copy.deepcopy` gives the layer and its weight a state each."""
    layer = four_bit.quantize(linear())
    wanted = four_bit.dequantize(layer)
    repack(layer)
    twin = copy.deepcopy(layer)
    assert distance(four_bit.dequantize(twin), wanted) < ROUNDING
    assert layer.weight.quant_state.packing_format_for_cpu
    assert distance(four_bit.dequantize(layer), wanted) < ROUNDING


@pytest.mark.parametrize("nested", [True, False])
def test_a_layer_is_right_after_upstream_saved_it(
    four_bit: Quantizer, repack: Repack, nested: bool
) -> None:
    """`state_dict` runs upstream's inverse, which leaves the scales transposed."""
    layer = four_bit.quantize(linear(), compress_statistics=nested)
    wanted = four_bit.dequantize(layer)
    repack(layer)
    layer.state_dict()
    assert distance(four_bit.dequantize(layer), wanted) < 2 * ROUNDING


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_right_however_the_layer_was_repacked(
    four_bit: Quantizer, repack: Repack, dtype: torch.dtype
) -> None:
    layer = four_bit.quantize(linear(dtype))
    weight = four_bit.dequantize(layer)
    model = nn.Sequential(layer)
    repack(model)
    quantlora.wrap(model, target_modules=["0"], r=4)
    repack(model)
    x = torch.randn(3, 128, dtype=dtype, requires_grad=True)
    model(x).sum().backward()
    assert distance(x.grad, weight.sum(0).expand(3, -1)) < ROUNDING + torch.finfo(dtype).eps


@pytest.mark.parametrize("use_dora", [False, True])
def test_gradients_are_right_where_the_layer_is_repacked_before_backward(
    four_bit: Quantizer, repack: Repack, use_dora: bool
) -> None:
    model, x = adapted(four_bit, use_dora=use_dora)
    (wanted,) = torch.autograd.grad(model(x).square().sum(), x)
    loss = model(x).square().sum()
    repack(model)
    assert distance(torch.autograd.grad(loss, x)[0], wanted) < ROUNDING


@pytest.mark.parametrize("repacked_first", [True, False])
def test_other_codes_before_backward_are_an_error_in_either_layout(
    four_bit: Quantizer, repack: Repack, repacked_first: bool
) -> None:
    model, x = adapted(four_bit)
    loss = model(x).sum()
    steps = [lambda: repack(model), lambda: model[0].base_layer.weight.data.bitwise_xor_(255)]
    for step in steps if repacked_first else reversed(steps):
        step()
    with pytest.raises(ChangedBaseError, match=r"0: weight was given other values"):
        loss.backward()


@pytest.mark.parametrize("before_forward", [True, False])
def test_a_weight_that_is_read_is_right_where_the_layer_is_repacked(
    four_bit: Quantizer, repack: Repack, before_forward: bool
) -> None:
    model, x = adapted(four_bit)
    A = model[0].lora_A["default"].weight
    (wanted,) = torch.autograd.grad((x @ model[0].weight.t()).square().sum(), A)
    if before_forward:
        repack(model)
    loss = (x @ model[0].weight.t()).square().sum()
    if not before_forward:
        repack(model)
    assert distance(torch.autograd.grad(loss, A)[0], wanted) < ROUNDING


def adapted(four_bit: Quantizer, **fields: Any) -> tuple[nn.Sequential, Tensor]:
    model = nn.Sequential(four_bit.quantize(linear()))
    fields |= {"r": 4, "target_modules": ["0"], "init_lora_weights": False}
    return quantlora.wrap(model, **fields), torch.randn(3, 128, requires_grad=True)


def test_a_layer_repacked_in_inference_mode_can_be_trained(four_bit: Quantizer) -> None:
    layer = four_bit.quantize(linear())
    weight = four_bit.dequantize(layer)
    with torch.inference_mode():
        layer.eval()(torch.randn(2, 128))
    model = quantlora.wrap(nn.Sequential(layer), target_modules=["0"], r=4)
    x = torch.randn(3, 128, requires_grad=True)
    model.train()(x).sum().backward()
    assert distance(x.grad, weight.sum(0).expand(3, -1)) < ROUNDING


@needs_layout
@pytest.mark.parametrize("size", [(96, 64), (64, 40)])
def test_a_layer_that_upstream_fails_to_repack_is_right(
    four_bit: Quantizer, size: tuple[int, int]
) -> None:
    """Rows of no whole blocks, or not a multiple of 32 of them: upstream's forward fails midway."""
    layer = four_bit.quantize(nn.Linear(*size))
    wanted = four_bit.dequantize(layer)
    pack = bnb.functional._convert_weight_packed_for_cpu
    with pytest.raises((RuntimeError, AssertionError)):
        pack(layer.weight.data, layer.weight.quant_state)
    assert torch.equal(four_bit.dequantize(layer), wanted)


def test_a_merge_after_repacking_is_that_of_the_weight(four_bit: Quantizer, repack: Repack) -> None:
    layer = four_bit.quantize(linear())
    weight = four_bit.dequantize(layer)
    repack(layer)
    fields: dict[str, Any] = {"r": 4, "target_modules": ["0"], "init_lora_weights": False}
    model = quantlora.wrap(nn.Sequential(layer), **fields)
    repack(model)
    wanted = weight + model[0].delta_weight("default", weight)
    quantlora.merge(model, mode="dequantize")
    assert distance(model[0].dequantize(), wanted) < ROUNDING


def test_a_layer_without_adapter_passes_gradients_after_eval(four_bit: Quantizer) -> None:
    """Only ``first`` is targeted; upstream's forward of ``second`` must not block its gradient."""
    model = nn.Sequential(*(four_bit.quantize(nn.Linear(64, 64)) for _ in range(2)))
    model[1].support_avx512bf16_for_cpu = True  # what bitsandbytes finds on such a CPU
    quantlora.wrap(model, target_modules=["0"], r=4)
    x = torch.randn(3, 64)
    with torch.no_grad():
        model.eval()(x)
    model.train()(x).sum().backward()
    wanted = four_bit.dequantize(model[1]).sum(0).expand(3, -1)
    grad_B = wanted.t() @ (x @ model[0].lora_A["default"].weight.t()) * model[0].scaling["default"]
    assert distance(model[0].lora_B["default"].weight.grad, grad_B) < 1e-5


def test_training_after_generation_learns_the_same(four_bit: Quantizer) -> None:
    """The same steps with and without a generation before each: the same losses."""
    x = torch.randint(3, 80, (2, 12), generator=torch.Generator().manual_seed(0))
    runs = []
    for generates in (False, True):
        model = quantlora.wrap(
            tiny_llama(), backend="bitsandbytes_4bit", r=4, target_modules=["q_proj"]
        )
        runs.append(losses(model, x, generates))
    assert runs[0] == pytest.approx(runs[1], rel=1e-6)
    assert runs[0][-1] < runs[0][0]


def losses(model: Any, x: Tensor, generates: bool) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    found = []
    for _ in range(3):
        if generates:
            model.eval().generate(x[:, :4], attention_mask=torch.ones(2, 4), max_new_tokens=3)
        loss = model.train()(x, labels=x).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


@needs_layout
@settings(deadline=None, max_examples=20)
@given(rows=st.integers(1, 4), blocks=st.integers(1, 5), seed=st.integers(0, 99))
def test_codes_survive_for_every_shape_that_upstream_repacks(
    rows: int, blocks: int, seed: int
) -> None:
    torch.manual_seed(seed)
    quantizer = quantlora.registry().quantizer("bitsandbytes_4bit")
    layer = quantizer.quantize(nn.Linear(64 * blocks, 32 * rows), compress_statistics=False)
    before = layer.weight.data.clone()
    pack = bnb.functional._convert_weight_packed_for_cpu
    layer.weight.data, layer.weight.quant_state = pack(layer.weight.data, layer.weight.quant_state)
    quantizer.dequantize(layer)
    assert torch.equal(layer.weight.data, before)
