"""QERA, PiSSA, OLoRA and orthogonal on quantized layers."""

import copy
from typing import ClassVar

import pytest
import torch
from quantlora_loftq import LoftQConfig, input_mean_squares
from quantlora_normalfloat import NormalFloatQuantizer
from torch import nn

import quantlora
from quantlora import AdapterWarning, BackendError, ConfigError
from quantlora.testing import InitializerSuite

R, SIZE = 8, 128


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(SIZE, SIZE))


@pytest.fixture
def inputs():
    """Channels of very different sizes, as in a language model."""
    return torch.randn(512, SIZE) * torch.logspace(-2, 1, SIZE)


def start(net, init, backend="normalfloat", **fields):
    fields = {"r": R, "lora_alpha": 2 * R, **fields}
    return quantlora.wrap(net, backend=backend, init_lora_weights=init, **fields)


def update(layer):
    """``s · B · A``."""
    A, B = (table["default"].weight.detach() for table in (layer.lora_A, layer.lora_B))
    return layer.scaling["default"] * B @ A


def output_error(net, weight, bias, x):
    return float((net(x) - nn.functional.linear(x, weight, bias)).detach().norm())


def test_qera_has_a_smaller_output_error_than_loftq(net, inputs):
    weight, bias = net[0].weight.detach().clone(), net[0].bias.detach()
    config = LoftQConfig(loftq_bits=3, calibration=input_mean_squares(net, [inputs]))
    errors = {}
    for init in ("loftq", "qera"):
        twin = nn.Sequential(quantlora.linear_from(weight, bias))
        start(twin, init, loftq_config=config)
        errors[init] = output_error(twin, weight, bias, inputs)
    assert errors["qera"] < 0.8 * errors["loftq"]


@pytest.mark.parametrize("init", ["loftq", "qera"])
@pytest.mark.filterwarnings("ignore")
def test_a_file_from_its_packing_warns_on_the_original_base(net, inputs, init, tmp_path):
    original = copy.deepcopy(net)
    config = LoftQConfig(loftq_bits=2, calibration=input_mean_squares(net, [inputs]))
    start(net, init, loftq_config=config)
    quantlora.save_adapter(net, tmp_path)
    with pytest.warns(AdapterWarning, match="trained on another base: normalfloat with 2 bits"):
        quantlora.load_adapter(original, tmp_path)
    again = quantlora.load_adapter(quantlora.unload(copy.deepcopy(net)), tmp_path)
    assert torch.equal(again(inputs), net(inputs))


def test_qera_is_optimal_in_its_metric(net, inputs):
    weight = net[0].weight.detach().clone()
    squares = input_mean_squares(net, [inputs])
    config = LoftQConfig(loftq_bits=2, method="exact", calibration=squares)
    layer = start(net, "qera", loftq_config=config)[0]
    residual = (weight - layer.dequantize()).double() * squares["0"].double().sqrt()
    best = float(torch.linalg.svdvals(residual)[R:].norm())
    product = update(layer)
    found = residual - product.double() * squares["0"].double().sqrt()
    assert float(found.norm()) == pytest.approx(best, rel=1e-3)


def test_the_calibration_pass_gives_the_mean_square_of_each_channel(net, inputs):
    squares = input_mean_squares(net, inputs.split(100))
    torch.testing.assert_close(squares["0"], inputs.square().mean(0))
    assert not net[0]._forward_pre_hooks


def test_qera_without_calibration_says_how_to_get_it(net):
    with pytest.raises(ConfigError, match="input_mean_squares"):
        start(net, "qera", loftq_config={"loftq_bits": 4})


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("backend", ["auto", "normalfloat", "bitsandbytes_4bit"])
def test_what_the_adapter_takes_the_base_gives(net, init, backend):
    if backend.startswith("bits"):
        pytest.importorskip("bitsandbytes")
    weight, bias = net[0].weight.detach().clone(), net[0].bias.detach()
    x = torch.randn(16, SIZE)
    start(net, init, backend)
    plain = nn.functional.linear(x, weight, bias)
    relative = (net(x) - plain).norm() / plain.norm()
    assert relative < (1e-5 if backend == "auto" else 0.12)
    assert net[0].lora_B["default"].weight.abs().max() > 0


def test_pissa_takes_the_principal_part(net):
    weight = net[0].weight.detach().clone()
    layer = start(net, "pissa", "auto")[0]
    U, S, Vh = torch.linalg.svd(weight)
    product = update(layer)
    torch.testing.assert_close(product, U[:, :R] * S[:R] @ Vh[:R], atol=1e-2, rtol=1e-2)


def test_pissa_on_packed_layers_reads_their_weight_not_their_storage(net):
    packed = nn.Sequential(NormalFloatQuantizer().quantize(net[0], bits=8))
    before = packed[0].dequantize()
    layer = start(packed, "pissa", "auto")[0]
    product = update(layer)
    assert (layer.dequantize() + product - before).norm() / before.norm() < 0.01


def test_orthogonal_starts_at_the_base_with_both_factors_alive(net):
    packed = nn.Sequential(NormalFloatQuantizer().quantize(net[0]))
    base, x = packed[0], torch.randn(4, SIZE)
    before = packed(x)
    start(packed, "orthogonal", "auto")
    torch.testing.assert_close(packed(x), before, atol=1e-4, rtol=1e-4)
    assert packed[0].base_layer is base
    packed(x).sum().backward()
    assert all(p.grad.abs().max() > 0 for p in packed[0].adapter_tensors("default").values())


def test_orthogonal_refuses_an_odd_rank(net):
    with pytest.raises(ConfigError, match="even rank"):
        start(net, "orthogonal", "auto", r=7)


def test_a_base_that_others_use_is_not_changed(net):
    quantlora.wrap(net, r=4)
    with pytest.raises(ConfigError, match="first adapter only"):
        start(net, "pissa", "auto", adapter_name="second")


def test_a_format_that_cannot_be_packed_again_is_named(net, monkeypatch):
    packed = nn.Sequential(NormalFloatQuantizer().quantize(net[0]))
    monkeypatch.setattr(NormalFloatQuantizer, "can_quantize", False)
    with pytest.raises(BackendError, match="cannot be packed again"):
        start(packed, "pissa", "auto")


class TestPiSSA(InitializerSuite):
    initializer = "pissa"


class TestOLoRA(InitializerSuite):
    initializer = "olora"


class TestOrthogonal(InitializerSuite):
    initializer = "orthogonal"


class TestLoftQ(InitializerSuite):
    initializer = "loftq"
    fields: ClassVar = {"backend": "normalfloat", "loftq_config": {"loftq_iter": 3}}
