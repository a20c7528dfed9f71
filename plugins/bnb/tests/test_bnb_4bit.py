"""``bitsandbytes_4bit``: packs and unpacks as upstream does, with every setting."""

from __future__ import annotations

from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from hypothesis import given, settings, strategies as st
from quantlora_bnb.four_bit import fused_product
from torch import Tensor, nn

import quantlora
from quantlora import BackendError, Quantizer

FORMS = [
    pytest.param({"quant_type": kind, "compress_statistics": nested, "quant_storage": storage})
    for kind in ("nf4", "fp4")
    for nested in (True, False)
    for storage in (torch.uint8, torch.bfloat16, torch.float16, torch.float32)
]


def linear(dtype: torch.dtype = torch.float32, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(128, 96, bias, dtype=dtype)


def upstreams(source: nn.Linear, blocksize: int = 64, **options: Any) -> nn.Module:
    """The layer that bitsandbytes makes of ``source`` when it is moved."""
    layer = bnb.nn.Linear4bit(source.in_features, source.out_features, **options)
    options = {key: options[key] for key in options if key != "compute_dtype"}
    layer.weight = bnb.nn.Params4bit(
        source.weight.detach(), requires_grad=False, blocksize=blocksize, module=layer, **options
    )
    layer.bias = nn.Parameter(source.bias.detach().clone(), False)
    return layer.to("cpu")


def distance(actual: Tensor, wanted: Tensor) -> float:
    actual, wanted = actual.detach().double(), wanted.detach().double()
    return float((actual - wanted).norm() / wanted.norm())


def bits(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", FORMS)
def test_quantize_packs_what_upstream_packs(
    four_bit: Quantizer, options: dict[str, Any], dtype: torch.dtype
) -> None:
    ours, theirs = four_bit.quantize(linear(dtype), **options), upstreams(linear(dtype), **options)
    assert torch.equal(bits(ours.weight.data), bits(theirs.weight.data))
    assert ours.weight.quant_state == theirs.weight.quant_state
    assert ours.weight.dtype == options["quant_storage"]


@pytest.mark.parametrize("blocksize", [64, 128, 512, pytest.param(4096, marks=pytest.mark.slow)])
def test_the_blocksize_is_kept(four_bit: Quantizer, blocksize: int) -> None:
    ours = four_bit.quantize(linear(), blocksize=blocksize)
    theirs = upstreams(linear(), blocksize=blocksize, quant_type="nf4")
    assert torch.equal(four_bit.dequantize(ours), four_bit.dequantize(theirs))
    assert four_bit.describe(ours)["blocksize"] == blocksize
    assert four_bit.group_size(ours) == (blocksize if blocksize <= 128 else None)


@pytest.mark.parametrize("options", FORMS)
def test_dequantize_is_upstreams_in_float32(four_bit: Quantizer, options: dict[str, Any]) -> None:
    layer = upstreams(linear(), **options)
    theirs = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    assert torch.equal(four_bit.dequantize(layer), theirs)


@pytest.mark.parametrize("options", FORMS)
def test_dequantize_is_code_times_scale(four_bit: Quantizer, options: dict[str, Any]) -> None:
    """Against float64, from the packed bytes: high half-byte first, a scale for each block."""
    layer = four_bit.quantize(linear(), **{**options, "compress_statistics": False})
    assert distance(four_bit.dequantize(layer), code_times_scale(layer)) < 1e-4


def code_times_scale(layer: Any) -> Tensor:
    packed, state = bits(layer.weight.data), layer.weight.quant_state
    codes = torch.stack((packed >> 4, packed & 15), 1).reshape(-1)[: state.shape.numel()].long()
    scales = state.absmax.double().repeat_interleave(state.blocksize)[: len(codes)]
    return (state.code.double()[codes] * scales).reshape(state.shape)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_float32_rounded(four_bit: Quantizer, dtype: torch.dtype) -> None:
    layer = four_bit.quantize(linear())
    wanted = four_bit.dequantize(layer).to(dtype)
    assert four_bit.dequantize_to(layer, dtype).dtype == dtype
    assert distance(four_bit.dequantize_to(layer, dtype), wanted) < torch.finfo(dtype).eps


def test_the_weight_of_a_half_precision_model_keeps_float32_scales(four_bit: Quantizer) -> None:
    """Upstream's product has them too, its `dequantize_4bit` rounds them to bfloat16."""
    layer = four_bit.quantize(linear(torch.bfloat16, bias=False))
    x = torch.randn(5, 128)
    with torch.enable_grad():
        theirs = layer.train()(x.requires_grad_())
    assert distance(x @ four_bit.dequantize(layer).t(), theirs) < 1e-6


@pytest.mark.parametrize("options", FORMS)
def test_a_wrapped_layer_gives_upstreams_training_output(
    four_bit: Quantizer, options: dict[str, Any]
) -> None:
    layer = upstreams(linear(), **options)
    x = torch.randn(5, 128, requires_grad=True)
    theirs = layer.train()(x)
    ours = quantlora.wrap(nn.Sequential(layer), target_modules=["0"], r=4)(x)
    assert distance(ours, theirs) < 1e-6


@pytest.mark.parametrize("compute", [None, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
def test_products_are_taken_in_the_compute_dtype(
    four_bit: Quantizer, compute: torch.dtype | None, given: torch.dtype
) -> None:
    layer = four_bit.quantize(linear(bias=False), compute_dtype=compute)
    x = torch.randn(5, 128, dtype=given)
    y = quantlora.wrap(nn.Sequential(layer), target_modules=["0"], r=4)(x)
    own = compute or given
    wanted = (x.to(own) @ four_bit.dequantize_to(layer, own).t()).to(given)
    assert four_bit.compute_dtype(layer) == compute
    assert torch.equal(y, wanted)


def test_the_weight_is_really_packed(four_bit: Quantizer) -> None:
    layer = four_bit.quantize(nn.Linear(512, 512, bias=False))
    state = layer.weight.quant_state
    scales = (state.absmax, state.state2.absmax)
    stored = layer.weight.nbytes + sum(scale.nbytes for scale in scales)
    assert stored * 8 / 512**2 < 4.2
    assert next(iter(layer.state_dict())) == "weight"


def test_a_float64_layer_is_packed_from_float32(four_bit: Quantizer) -> None:
    wide, narrow = (four_bit.quantize(one) for one in (linear().double(), linear()))
    assert torch.equal(four_bit.dequantize(wide), four_bit.dequantize(narrow))


def test_like_keeps_every_setting(four_bit: Quantizer) -> None:
    layer = four_bit.quantize(
        linear(torch.bfloat16),
        quant_type="fp4",
        blocksize=128,
        compress_statistics=False,
        quant_storage=torch.float32,
        compute_dtype=torch.bfloat16,
    )
    again = four_bit.quantize(linear(), like=layer)
    assert four_bit.describe(again) == four_bit.describe(layer)
    assert again.weight.quant_state.dtype == torch.bfloat16


def test_describe_names_the_options(four_bit: Quantizer) -> None:
    layer = four_bit.quantize(linear(), compute_dtype=torch.bfloat16)
    assert four_bit.describe(layer) == {
        "bits": 4,
        "quant_type": "nf4",
        "blocksize": 64,
        "compress_statistics": True,
        "quant_storage": "uint8",
        "compute_dtype": "bfloat16",
    }


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"block_size": 64}, "no option 'block_size'; its options are quant_type, blocksize"),
        ({"blocksize": 100}, "blocksize must be one of 32, 64, .* got 100"),
        ({"quant_type": "int4"}, "quant_type must be one of nf4, fp4, got 'int4'"),
    ],
)
def test_wrong_options_are_named(four_bit: Quantizer, options: dict[str, Any], text: str) -> None:
    with pytest.raises(BackendError, match=text):
        four_bit.quantize(linear(), **options)


def test_a_storage_that_the_shape_does_not_fill_is_named(four_bit: Quantizer) -> None:
    with pytest.raises(BackendError, match="cannot pack a 3 x 3 weight with Settings4bit"):
        four_bit.quantize(nn.Linear(3, 3), quant_storage=torch.float32)


def test_a_layer_that_was_never_packed_is_refused() -> None:
    model = nn.Sequential(bnb.nn.Linear4bit(64, 64))
    with pytest.raises(BackendError, match=r"0: this Linear4bit holds no quantized weight .*\.to"):
        quantlora.wrap(model, target_modules=["0"], r=4)
    assert isinstance(model[0], bnb.nn.Linear4bit)


def test_a_layer_that_was_never_packed_is_described(four_bit: Quantizer) -> None:
    layer = bnb.nn.Linear4bit(64, 64, quant_type="nf4")
    facts = four_bit.describe(layer)
    assert (facts["quant_type"], facts["blocksize"]) == ("nf4", 64)


def test_a_float_storage_that_was_cast_is_refused(four_bit: Quantizer) -> None:
    """Upstream would compute with destroyed bits."""
    model = quantlora.wrap(
        nn.Sequential(four_bit.quantize(linear(), quant_storage=torch.bfloat16)),
        target_modules=["0"],
        r=4,
    )
    model.float()
    with pytest.raises(BackendError, match=r"cast from torch.bfloat16 to torch.float32"):
        model(torch.randn(2, 128))


def test_a_weight_that_lost_its_state_is_read_by_the_layers(four_bit: Quantizer) -> None:
    """FSDP replaces the parameter; the layer keeps the quant_state."""
    layer = four_bit.quantize(linear())
    wanted = four_bit.dequantize(layer)
    layer.weight = nn.Parameter(layer.weight.data, requires_grad=False)
    assert torch.equal(four_bit.dequantize(layer), wanted)


def test_the_fast_product_is_declined_on_a_cpu(four_bit: Quantizer) -> None:
    layer = four_bit.quantize(linear())
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert four_bit.matmul(layer, torch.randn(1, 128, dtype=dtype)) is None


@pytest.mark.parametrize("options", FORMS)
@pytest.mark.parametrize("rows", [(), (1,), (2, 3)])
def test_the_fused_product_is_that_of_the_weight(
    four_bit: Quantizer, options: dict[str, Any], rows: tuple[int, ...]
) -> None:
    """The call that accelerators get; here it runs upstream's CPU kernel."""
    layer = four_bit.quantize(linear(), **options)
    x = torch.randn(*rows, 128, dtype=torch.bfloat16)
    with torch.no_grad():
        fast = fused_product(layer, x)
    wanted = x.double() @ four_bit.dequantize(layer).double().t()
    assert fast is not None
    assert distance(fast, wanted) < 1e-2


@settings(deadline=None, max_examples=50)
@given(rows=st.integers(1, 40), pairs=st.integers(1, 100), blocksize=st.sampled_from([64, 128]))
def test_every_even_shape_is_code_times_scale(rows: int, pairs: int, blocksize: int) -> None:
    """Blocks run over the flattened weight, across rows; upstream's CPU kernel counts by row."""
    quantizer = quantlora.registry().quantizer("bitsandbytes_4bit")
    torch.manual_seed(rows * pairs)
    source = nn.Linear(2 * pairs, rows)
    source.weight.data *= torch.logspace(-1, 1, rows)[:, None]
    layer = quantizer.quantize(source, compress_statistics=False, blocksize=blocksize)
    for dtype in (torch.float32, torch.bfloat16):
        unpacked = quantizer.dequantize_to(layer, dtype)
        assert distance(unpacked, code_times_scale(layer)) < max(1e-4, torch.finfo(dtype).eps)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_dequantize_compiles_without_a_graph_break(four_bit: Quantizer, backend: str) -> None:
    layer = four_bit.quantize(linear())
    compiled = torch.compile(lambda: four_bit.dequantize(layer), fullgraph=True, backend=backend)
    assert torch.equal(compiled(), four_bit.dequantize(layer))
