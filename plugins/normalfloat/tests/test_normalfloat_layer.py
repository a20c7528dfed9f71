"""The layer and its quantizer: right values, right size, and an `nn.Module` like any other."""

import copy
import re

import pytest
import torch
from quantlora_normalfloat import NormalFloatLinear, NormalFloatQuantizer, level_table
from quantlora_normalfloat.tables import BITS, QUANT_TYPES
from torch import nn

import quantlora
from quantlora import BackendError

FORMATS = [
    (bits, kind, double) for bits in BITS for kind in QUANT_TYPES for double in (False, True)
]
every_format = pytest.mark.parametrize(("bits", "quant_type", "double_quant"), FORMATS)
quantizer = NormalFloatQuantizer()


def packed(linear, **options):
    return quantizer.quantize(linear, **options)


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return nn.Linear(160, 48)  # 160 is two blocks of 64 and a half one


def test_each_weight_becomes_the_nearest_level_times_its_blocks_magnitude(linear):
    weight = linear.weight.detach().double()
    blocks = weight[:, :128].reshape(48, 2, 64)
    scale = blocks.abs().amax(-1, keepdim=True)
    levels = level_table(2).double()
    nearest = levels[(blocks[..., None] / scale[..., None] - levels).abs().argmin(-1)] * scale
    ours = packed(linear, bits=2).dequantize()[:, :128]
    torch.testing.assert_close(ours, nearest.reshape(48, 128).float())


def test_uniform_reaches_the_ends_of_each_block_and_errs_by_half_a_step(linear):
    layer = packed(linear, bits=3, quant_type="uniform", block_size=32)
    step = layer.scales().repeat_interleave(32, 1)
    assert ((layer.dequantize() - linear.weight).abs() <= step * 0.5001).all()


@every_format
def test_dequantize_is_what_the_codes_scales_and_zeros_say(linear, bits, quant_type, double_quant):
    layer = packed(linear, bits=bits, quant_type=quant_type, double_quant=double_quant)
    values = layer.levels[layer.codes().long()]
    spread = [
        t if t is None else t.repeat_interleave(64, 1)[:, :160]
        for t in (layer.zeros, layer.scales())
    ]
    zeros, scales = spread
    expected = (values if zeros is None else values - zeros) * scales
    torch.testing.assert_close(layer.dequantize(), expected)


@every_format
def test_state_dict_goes_round_through_an_empty_layer(linear, bits, quant_type, double_quant):
    options = {"bits": bits, "quant_type": quant_type, "double_quant": double_quant}
    layer = packed(linear, **options)
    other = NormalFloatLinear(160, 48, **options)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.dequantize(), layer.dequantize())
    assert torch.equal(other.bias, linear.bias)


@every_format
def test_packing_a_packed_weight_again_changes_nothing(linear, bits, quant_type, double_quant):
    options = {"bits": bits, "quant_type": quant_type, "double_quant": double_quant}
    once = packed(linear, **options).dequantize()
    twice = packed(quantlora.linear_from(once), **options).dequantize()
    close = 1e-6 if not double_quant else 2e-2
    torch.testing.assert_close(twice, once, atol=close, rtol=close)


@pytest.mark.parametrize(("double", "limit"), [(False, 2.51), (True, 2.14)])
def test_a_two_bit_layer_takes_two_bits_and_its_scales(double, limit):
    layer = packed(nn.Linear(1024, 512, bias=False), bits=2, double_quant=double)
    stored = sum(tensor.numel() * tensor.element_size() for tensor in layer.buffers())
    assert 8 * stored / (1024 * 512) < limit


def test_a_change_of_dtype_leaves_the_weight_exact(linear):
    layer = packed(linear)
    before = layer.dequantize()
    layer.to(torch.bfloat16)
    assert layer.weight.dtype == layer.bias.dtype == torch.bfloat16
    assert torch.equal(layer.dequantize(), before)


def test_a_copy_is_its_own(linear):
    layer = packed(linear)
    twin = copy.deepcopy(layer)
    twin.packed.zero_()
    assert not torch.equal(twin.dequantize(), layer.dequantize())


def test_a_block_of_zeros_stays_zero_and_a_constant_one_its_value():
    constant = quantlora.linear_from(torch.tensor([[0.0] * 64, [0.7] * 64]))
    uniform = packed(constant, bits=2, quant_type="uniform")
    torch.testing.assert_close(uniform.dequantize(), constant.weight.detach())
    assert torch.equal(packed(constant).dequantize()[0], torch.zeros(64))


def test_like_takes_the_settings_of_another_layer(linear):
    model = packed(linear, bits=3, quant_type="uniform", block_size=16, double_quant=True)
    assert quantizer.describe(packed(linear, like=model)) == quantizer.describe(model)


def test_forward_agrees_with_a_float_layer_of_the_same_weight(linear):
    layer, x = packed(linear), torch.randn(3, 160)
    expected = nn.functional.linear(x, layer.dequantize(), linear.bias)
    torch.testing.assert_close(layer(x), expected)


def test_a_half_precision_weight_is_packed_and_given_back_in_its_dtype(linear):
    layer = packed(linear.bfloat16(), bits=8)
    assert layer.weight.dtype == torch.bfloat16
    torch.testing.assert_close(layer.weight, linear.weight.detach(), atol=2e-3, rtol=2e-2)


def test_other_bits_are_refused_in_the_known_words(linear):
    with pytest.raises(BackendError, match="Only support 2, 3, 4, 8 bits quantization, got 5"):
        packed(linear, bits=5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named_by_its_path(linear, bad):
    model = nn.Sequential(linear)
    linear.weight.data[3, 4] = bad
    with pytest.raises(BackendError, match="0: the weight holds NaN or infinite values"):
        quantlora.wrap(model, backend="normalfloat", r=2)


def test_bits_by_pattern_give_mixed_precision():
    model = nn.Sequential(*[nn.Linear(64, 64) for _ in range(4)])
    options = {"bits": 2, "bits_pattern": {"[0-1]": 4}}
    quantlora.wrap(model, backend="normalfloat", r=2, quantize_options=options)
    assert [layer.base_layer.bits for layer in model] == [4, 4, 2, 2]


@pytest.mark.parametrize(
    ("pattern", "error"), [("(.|..)+0", quantlora.TargetError), ("(", quantlora.ConfigError)]
)
def test_a_bits_pattern_that_hangs_or_cannot_be_read_is_refused(pattern, error):
    model = nn.Sequential()
    model.add_module("0a" * 20, nn.Linear(64, 64))
    options = {"bits_pattern": {pattern: 4}}
    with pytest.raises(error, match=re.escape(pattern)):
        quantlora.wrap(model, backend="normalfloat", r=2, quantize_options=options)


def test_a_bits_pattern_that_matches_nothing_is_an_error():
    options = {"bits_pattern": {"layers.9": 4}}
    with pytest.raises(BackendError, match=r"layers\.9"):
        quantlora.wrap(
            nn.Sequential(nn.Linear(64, 64)), backend="normalfloat", r=2, quantize_options=options
        )
