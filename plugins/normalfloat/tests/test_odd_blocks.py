"""Blocks of zeros, of one value, of denormals and of huge values: none ruins another."""

import pytest
import torch
from quantlora_normalfloat import NormalFloatQuantizer

import quantlora

ODD = {"zero": 0.0, "constant": 0.5, "denormal": 1e-40, "tiny": 1e-9, "huge": 1e6}
FORMATS = [(kind, bits) for kind in ("nf", "uniform") for bits in (2, 4, 8)]


def weights(odd=None, blocks=1):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 512, generator=generator) * 0.02
    if odd is not None:
        size = ODD[odd]
        steady = odd in ("zero", "constant")
        part = weight.view(-1, 64)[3 : 3 + blocks]
        part.copy_(torch.full_like(part, size) if steady else part * 50 * size)
    return weight


def packed(weight, **options):
    return NormalFloatQuantizer().quantize(quantlora.linear_from(weight), **options).dequantize()


def error(found, weight):
    return float((found - weight).double().norm() / weight.double().norm())


@pytest.mark.parametrize("blocks", [1, 5])
@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize(("quant_type", "bits"), FORMATS)
def test_an_odd_block_leaves_its_neighbours_as_they_were(quant_type, bits, odd, blocks):
    options = {"quant_type": quant_type, "bits": bits, "double_quant": True}
    weight = weights(odd, blocks)
    found = packed(weight, **options)
    usual = error(packed(weights(), **options)[1:], weights()[1:])
    at_most = 1.05 * usual + (0.012 if odd in ("huge", "tiny") else 0.0005)
    assert error(found.view(-1, 64)[8:], weight.view(-1, 64)[8:]) < at_most


@pytest.mark.parametrize("odd", ["zero", "constant"])
@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize(("quant_type", "bits"), FORMATS)
def test_a_block_of_one_value_keeps_it(quant_type, bits, double, odd):
    weight = weights(odd)
    found = packed(weight, quant_type=quant_type, bits=bits, double_quant=double)
    wanted = weight.view(-1, 64)[3]
    torch.testing.assert_close(found.view(-1, 64)[3], wanted, atol=0, rtol=0.01)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("quant_type", ["nf", "uniform"])
@pytest.mark.parametrize("size", [1e-44, 1e-40, 3e38, 3.4e38])
def test_the_ends_of_float32_stay_finite(quant_type, bits, size):
    generator = torch.Generator().manual_seed(0)
    weight = (torch.rand(4, 128, generator=generator) * 2 - 1) * size
    weight[0, :2] = torch.tensor([size, -size])
    found = packed(weight, quant_type=quant_type, bits=bits)
    assert torch.isfinite(found).all()
    assert error(found, weight) < {2: 0.45, 4: 0.12, 8: 0.01}[bits]


def test_old_files_are_read_as_they_were():
    layer = NormalFloatQuantizer().quantize(quantlora.linear_from(weights()), double_quant=True)
    scales = layer.scales
    assert (scales.steps > 0).all()
    codes = scales.codes.view(-1, 256).float()
    wanted = ((codes - scales.zeros.t()) * scales.steps.t()).view(scales.codes.shape)
    torch.testing.assert_close(scales(), wanted)
