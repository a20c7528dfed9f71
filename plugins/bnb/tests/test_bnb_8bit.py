"""``bitsandbytes_8bit``: its codes wherever upstream keeps them, silent, LLM.int8 on demand."""

from __future__ import annotations

import copy
import logging
import warnings
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from quantlora_bnb import int8_terms
from quantlora_bnb.llm_int8 import int8_activations
from torch import Tensor, nn

import quantlora
from quantlora import BackendError, Quantizer

LOGGER = "bitsandbytes.autograd._functions"


def quantizer() -> Quantizer:
    return quantlora.registry().quantizer("bitsandbytes_8bit")


def linear(dtype: torch.dtype = torch.float32, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(128, 96, bias, dtype=dtype)


def upstreams(source: nn.Linear, threshold: float = 0.0) -> nn.Module:
    """The layer that bitsandbytes makes of ``source`` when it is moved."""
    size = (source.in_features, source.out_features)
    layer = bnb.nn.Linear8bitLt(*size, has_fp16_weights=False, threshold=threshold)
    layer.weight = bnb.nn.Int8Params(source.weight.detach().clone(), requires_grad=False)
    layer.bias = nn.Parameter(source.bias.detach().clone(), False)
    return layer.to("cpu")


def wrapped(layer: nn.Module, **fields: Any) -> nn.Sequential:
    return quantlora.wrap(nn.Sequential(layer), **{"r": 4, "target_modules": ["0"], **fields})


def distance(actual: Tensor, wanted: Tensor) -> float:
    actual, wanted = actual.detach().double(), wanted.detach().double()
    return float((actual - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_quantize_packs_what_upstream_packs(eight_bit: Quantizer, dtype: torch.dtype) -> None:
    ours, theirs = eight_bit.quantize(linear(dtype)), upstreams(linear(dtype))
    assert ours.weight.dtype == torch.int8
    assert torch.equal(ours.weight.data, theirs.weight.data)
    assert torch.equal(ours.weight.SCB, theirs.weight.SCB)


def test_dequantize_is_code_times_scale(eight_bit: Quantizer) -> None:
    layer = eight_bit.quantize(linear())
    codes, absmax = layer.weight.data.double(), layer.weight.SCB.double()
    assert distance(eight_bit.dequantize(layer), codes * absmax[:, None] / 127) < 1e-7


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_codes_are_found_after_upstreams_forward(eight_bit: Quantizer, mode: str) -> None:
    """The first forward moves CB and SCB from the weight to ``layer.state``."""
    layer = upstreams(linear())
    wanted = eight_bit.dequantize(layer)
    layer.train(mode == "train")(torch.randn(2, 128).half())
    assert layer.weight.SCB is None
    assert torch.equal(eight_bit.dequantize(layer), wanted)
    assert torch.equal(eight_bit.dequantize(copy.deepcopy(layer)), wanted)


def test_codes_are_found_where_only_the_state_holds_them(eight_bit: Quantizer) -> None:
    layer = upstreams(linear())
    wanted = eight_bit.dequantize(layer)
    layer.init_8bit_state()
    layer.weight = nn.Parameter(torch.empty(0), requires_grad=False)
    assert torch.equal(eight_bit.dequantize(layer), wanted)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_wrapped_layer_still_works_upstream_after_unload(eight_bit: Quantizer, mode: str) -> None:
    layer = upstreams(linear())
    x = torch.randn(3, 128)
    wanted = copy.deepcopy(layer).train(mode == "train")(x)
    model = wrapped(layer)
    model(x).sum().backward()
    plain = quantlora.unload(model).train(mode == "train")
    assert torch.equal(plain(x), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [(), (1,), (4, 4), (17,), (0,)])
def test_the_fast_product_is_that_of_the_weight(
    eight_bit: Quantizer, dtype: torch.dtype, rows: tuple[int, ...]
) -> None:
    layer = eight_bit.quantize(linear())
    x = torch.randn(*rows, 128, dtype=dtype)
    fast = eight_bit.matmul(layer, x)
    wanted = x.double() @ eight_bit.dequantize(layer).double().t()
    assert fast is not None
    assert fast.dtype == dtype
    assert fast.shape == wanted.shape
    assert not wanted.numel() or distance(fast, wanted) < {4: 1e-6, 2: 5e-3}[dtype.itemsize]


def test_float16_is_declined_because_the_unscaled_product_overflows(eight_bit: Quantizer) -> None:
    layer = eight_bit.quantize(linear())
    x = torch.full((1, 128), 1e3, dtype=torch.float16)
    assert eight_bit.matmul(layer, x) is None
    assert wrapped(layer).eval()(x).isfinite().all()


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_upstream_prints_nothing(
    eight_bit: Quantizer,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    mode: str,
) -> None:
    model = wrapped(upstreams(linear())).train(mode == "train")
    with warnings.catch_warnings(), caplog.at_level(logging.DEBUG):
        warnings.simplefilter("error")
        for _ in range(3):
            model(torch.randn(2, 128)).sum().backward()
    assert caplog.messages == []
    assert capfd.readouterr() == ("", "")


def test_a_layer_without_adapter_prints_its_line_once(caplog: pytest.LogCaptureFixture) -> None:
    """It keeps upstream's forward, which logs in every call."""
    model = nn.Sequential(upstreams(linear()), nn.Linear(96, 128), upstreams(linear()))
    quantlora.wrap(model, r=4, target_modules=["0"])
    for _ in range(3):
        model.eval()(torch.randn(2, 128))
    assert len([m for m in caplog.messages if "inputs will be cast" in m]) <= 1


@pytest.mark.parametrize("rows", [1, 3, 4])
@pytest.mark.parametrize("width", [17, 33, 40, 72, 100])
def test_few_rows_of_any_width_are_the_matrix_product(
    eight_bit: Quantizer, width: int, rows: int
) -> None:
    """torch's kernel for these reads beyond the end of rows that are no multiple of 16 wide."""
    torch.manual_seed(0)
    layer = eight_bit.quantize(nn.Linear(width, 17, False, dtype=torch.bfloat16))
    x = torch.randn(rows, width, dtype=torch.bfloat16)
    y = eight_bit.matmul(layer, x)
    assert distance(y, x.double() @ eight_bit.dequantize(layer).double().t()) < 0.01


@pytest.mark.parametrize("flag", [False, True], ids=["no int8 products", "int8 products"])
@pytest.mark.parametrize("largest", [1.0, 1e3, 1e-30, 0.0], ids=lambda size: f"outlier {size:g}")
def test_few_rows_are_right_whatever_the_processor_multiplies(
    eight_bit: Quantizer, flag: bool, largest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row is judged by itself: one of them has an outlier, or is tiny, or nothing but 0."""
    monkeypatch.setattr(int8_terms, "multiplies_int8", lambda: flag)
    layer = eight_bit.quantize(nn.Linear(512, 96, False))
    x = torch.randn(16, 512, generator=torch.Generator().manual_seed(0)).bfloat16()
    x[3] *= min(largest, 1.0)
    x[3, 7] = largest
    y, wanted = eight_bit.matmul(layer, x), x.double() @ eight_bit.dequantize(layer).double().t()
    rows = (y.double() - wanted).norm(dim=1) / wanted.norm(dim=1).clamp(min=1e-300)
    assert rows.max() < 4e-3  # bfloat16 itself: 1.7e-3 to 2e-3, its kernel 2.7e-3


@pytest.mark.parametrize("flag", [False, True])
def test_a_row_beyond_numbers_is_not_taken_for_a_number(
    eight_bit: Quantizer, flag: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_terms, "multiplies_int8", lambda: flag)
    layer, x = eight_bit.quantize(nn.Linear(64, 32, False)), torch.ones(8, 64).bfloat16()
    x[1, 0], x[2, 0] = torch.inf, torch.nan
    finite = eight_bit.matmul(layer, x).isfinite().all(1)
    assert finite.tolist() == [i not in (1, 2) for i in range(8)]


def test_llm_int8_differs_by_the_rounding_of_its_input_and_by_nothing_else() -> None:
    """Its forward is the product of the rounded input, which is 0.8 % from the input itself."""
    layer = upstreams(nn.Linear(1024, 512)).eval()
    codes, scale = layer.weight.data.double(), layer.weight.SCB.double() / 127
    x = torch.randn(16, 1024, generator=torch.Generator().manual_seed(0)).half()
    step = x.double().abs().amax(1, keepdim=True) / 127
    rounded = (x.double() / step).round() * step
    with torch.no_grad():
        y = layer(x).double() - layer.bias.double()
    weight = codes * scale[:, None]
    assert distance(y, rounded @ weight.t()) < 1e-3
    assert distance(y, x.double() @ weight.t()) == pytest.approx(0.0083, rel=0.1)


@pytest.mark.parametrize("threshold", [0.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_int8_activations_are_upstreams_forward(
    eight_bit: Quantizer, threshold: float, dtype: torch.dtype
) -> None:
    layer = eight_bit.quantize(linear(bias=False), threshold=threshold).eval()
    x = torch.randn(2, 5, 128, dtype=dtype)
    model = wrapped(copy.deepcopy(layer)).eval()
    with torch.no_grad():
        int8_activations(model)
        assert torch.equal(model(x), layer(x))
        int8_activations(model, False)
        assert not torch.equal(model(x), layer(x))


def test_int8_activations_do_not_touch_training(eight_bit: Quantizer) -> None:
    model, x = wrapped(eight_bit.quantize(linear())), torch.randn(3, 128)
    before = model(x)
    int8_activations(model)
    assert torch.equal(model(x), before)


def test_the_difference_to_llm_int8_is_the_one_the_readme_states(eight_bit: Quantizer) -> None:
    """0.8 % of the output (Frobenius), for normal weights and inputs."""
    layer = eight_bit.quantize(nn.Linear(1024, 1024, bias=False))
    x = torch.randn(64, 1024)
    model = int8_on(layer)
    wanted = x @ eight_bit.dequantize(layer).t()
    with torch.no_grad():
        assert distance(model(x), wanted) == pytest.approx(0.0083, rel=0.1)


def int8_on(layer: nn.Module) -> nn.Sequential:
    model = wrapped(layer).eval()
    int8_activations(model)
    return model


def test_like_keeps_the_threshold_and_the_switch(eight_bit: Quantizer) -> None:
    layer = eight_bit.quantize(linear(), threshold=6.0)
    int8_activations(layer)
    again = eight_bit.quantize(linear(), like=layer)
    assert eight_bit.describe(again) == {"bits": 8, "threshold": 6.0}
    assert again.int8_activations


def test_a_layer_with_float_weights_is_refused() -> None:
    """``has_fp16_weights=True`` is upstream's default; nothing is quantized then."""
    model = nn.Sequential(bnb.nn.Linear8bitLt(64, 64).to("cpu"))
    with pytest.raises(BackendError, match="0: this Linear8bitLt holds no quantized weight"):
        quantlora.wrap(model, target_modules=["0"], r=4)


def test_an_unknown_option_is_named(eight_bit: Quantizer) -> None:
    with pytest.raises(BackendError, match="no option 'blocksize'; its options are threshold"):
        eight_bit.quantize(linear(), blocksize=64)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_dequantize_compiles_without_a_graph_break(eight_bit: Quantizer, backend: str) -> None:
    layer = eight_bit.quantize(linear())
    compiled = torch.compile(lambda: eight_bit.dequantize(layer), fullgraph=True, backend=backend)
    assert torch.equal(compiled(), eight_bit.dequantize(layer))


@pytest.mark.parametrize("size", [1e-42, 1e-30, 1e-10, 1e-5, 1e5, 1e30, 1e37])
def test_weights_that_float16_has_no_room_for_are_packed_as_well(size: float) -> None:
    torch.manual_seed(0)
    weight = torch.randn(24, 64) * size
    weight[0] = 0
    layer = quantizer().quantize(quantlora.linear_from(weight))
    found = quantizer().dequantize(layer)
    error = (found.double() - weight.double()).norm() / weight.double().norm()
    assert error < (0.02 if size < 1e-38 else 0.008)


def test_ordinary_weights_are_packed_bit_for_bit_as_upstream_does() -> None:
    torch.manual_seed(0)
    weight = torch.randn(24, 64)
    layer = quantizer().quantize(quantlora.linear_from(weight))
    codes, absmax, _ = bnb.functional.int8_vectorwise_quant(weight.half())
    assert torch.equal(layer.weight.data, codes)
    assert torch.equal(layer.weight.SCB, absmax)


@pytest.mark.parametrize("size", [1e-10, 1e5])
def test_loftq_serves_such_weights(size: float) -> None:
    torch.manual_seed(0)
    weight = torch.randn(48, 64) * size
    net = nn.Sequential(quantlora.linear_from(weight))
    fields = {"r": 8, "init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 8}}
    layer = quantlora.wrap(net, backend="bitsandbytes_8bit", **fields)[0]
    plain = (weight - layer.dequantize()).norm()
    assert (weight - layer.dequantize() - layer.delta_weight("default", None)).norm() < 0.9 * plain
