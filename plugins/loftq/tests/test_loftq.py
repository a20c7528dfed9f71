"""``init_lora_weights="loftq"``: nearer to W at every scaling, on every backend that quantizes."""

import copy
import json

import pytest
import torch
from quantlora_loftq import LoftQConfig, replace_lora_weights_loftq
from quantlora_normalfloat import NormalFloatLinear, NormalFloatQuantizer
from safetensors.torch import save_file
from torch import nn

import quantlora
from quantlora import AdapterError, BackendError, ConfigError

R = 16
SIZE = 256


def model(size=SIZE, layers=1):
    torch.manual_seed(0)
    net = nn.Sequential(*[nn.Linear(size, size) for _ in range(layers)])
    for layer in net:
        nn.init.normal_(layer.weight, std=size**-0.5)
    return net


def loftq(net, backend="normalfloat", r=R, lora_alpha=R, **config):
    fields = {"r": r, "lora_alpha": lora_alpha, "init_lora_weights": "loftq"}
    return quantlora.wrap(net, backend=backend, loftq_config=LoftQConfig(**config), **fields)


def effective(layer):
    """``dequantize(Q) + s · B · A`` in float64."""
    A, B = (table["default"].weight.detach().double() for table in (layer.lora_A, layer.lora_B))
    return layer.dequantize().double() + layer.scaling["default"] * B @ A


def error(layer, weight):
    return float((weight.double() - effective(layer)).norm())


def plain(weight, bits):
    layer = NormalFloatQuantizer().quantize(quantlora.linear_from(weight), bits=bits)
    return float((weight - layer.dequantize()).norm())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_scaling_is_within_a_twentieth_percent_of_exact_svds(bits):
    net = model(640)  # above the size up to which the step is a full SVD anyway
    weight = net[0].weight.detach().clone()
    for iterations, share in [(1, 0.25), (1, 4), (5, 0.5), (5, 2)]:
        options = {"lora_alpha": share * R, "loftq_bits": bits, "loftq_iter": iterations}
        exact = error(loftq(copy.deepcopy(net), method="exact", **options)[0], weight)
        ours = error(loftq(copy.deepcopy(net), **options)[0], weight)
        assert ours <= 1.0005 * exact < plain(weight, bits)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_error_falls_with_iterations(bits):
    weight = model()[0].weight.detach()
    errors = [error(loftq(model(), loftq_bits=bits, loftq_iter=n)[0], weight) for n in (1, 2, 5)]
    assert errors[2] < errors[1] < errors[0]


def test_at_twice_the_rank_as_alpha_the_error_is_at_most_four_fifths_of_plain_nf4():
    net = model(1024)
    weight = net[0].weight.detach().clone()
    layer = loftq(net, r=64, lora_alpha=128, loftq_bits=4, loftq_iter=5)[0]
    assert error(layer, weight) <= 0.80 * plain(weight, 4)


def test_peft_leaves_out_the_scaling_and_ends_above_plain_quantization():
    # What PEFT 0.21 computes: factors of the residual, multiplied by the scaling all the same.
    net = model()
    weight = net[0].weight.detach().clone()
    layer = loftq(net, lora_alpha=R, loftq_iter=5)[0]
    layer.scaling["default"] = 2.0
    assert error(layer, weight) > plain(weight, 4)


def test_with_bitsandbytes_the_model_is_small_and_the_base_is_its_own_layer():
    bnb = pytest.importorskip("bitsandbytes")
    net = model()
    weight = net[0].weight.detach().clone()
    loftq(net, "bitsandbytes_4bit", loftq_bits=4, loftq_iter=3)
    base = net[0].base_layer
    assert isinstance(base, bnb.nn.Linear4bit)
    assert base.weight.numel() * base.weight.element_size() == SIZE * SIZE // 2
    assert error(net[0], weight) < plain(weight, 4)


def test_rank_stabilized_scaling_is_divided_out_too():
    net = model()
    weight = net[0].weight.detach().clone()
    config = LoftQConfig(loftq_bits=4)
    fields = {"r": R, "lora_alpha": 32, "init_lora_weights": "loftq", "loftq_config": config}
    quantlora.wrap(net, backend="normalfloat", use_rslora=True, **fields)
    assert error(net[0], weight) < plain(weight, 4)


def test_a_packed_layer_keeps_its_codes_and_gets_the_best_factors_for_them():
    net = model()
    floats = {"0": net[0].weight.detach().clone()}
    packed = nn.Sequential(NormalFloatQuantizer().quantize(net[0], bits=2))
    base = packed[0]
    config = LoftQConfig(loftq_iter=5, method="exact")
    fields = {"r": R, "init_lora_weights": "loftq", "loftq_config": config}
    quantlora.wrap(packed, reference=floats.__getitem__, **fields)
    assert packed[0].base_layer is base
    singular = torch.linalg.svdvals((floats["0"] - base.dequantize()).double())
    assert error(packed[0], floats["0"]) == pytest.approx(float(singular[R:].norm()), rel=1e-4)


@pytest.mark.parametrize("shards", [1, 2])
def test_the_reference_streams_from_a_folder_of_safetensors(tmp_path, shards):
    net = model(layers=2)
    save_floats(net, tmp_path, shards)
    weight = net[1].weight.detach().clone()
    packed = nn.Sequential(*[NormalFloatQuantizer().quantize(layer) for layer in net])
    fields = {"r": R, "init_lora_weights": "loftq", "loftq_config": {"loftq_iter": 1}}
    quantlora.wrap(packed, reference=tmp_path, **fields)
    assert error(packed[1], weight) < plain(weight, 4)


def save_floats(net, folder, shards):
    tensors = {key: tensor.contiguous() for key, tensor in net.state_dict().items()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return
    files = {key: f"model-{int(key[0]) + 1}.safetensors" for key in tensors}
    for file in set(files.values()):
        save_file({k: t for k, t in tensors.items() if files[k] == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))


def test_fake_leaves_the_dequantized_weight_in_a_float_layer():
    net, twin = model(), model()
    loftq(net, loftq_bits=2, loftq_iter=2, fake=True)
    loftq(twin, loftq_bits=2, loftq_iter=2)
    assert type(net[0].base_layer) is nn.Linear
    assert net[0].quantizer.name == "float"
    torch.testing.assert_close(net[0].base_layer.weight.data, twin[0].dequantize())


def test_fake_keeps_the_models_dtype():
    net = loftq(model().bfloat16(), loftq_bits=4, fake=True)
    assert net[0].base_layer.weight.dtype == torch.bfloat16


def test_dora_takes_the_same_start():
    net = model()
    weight = net[0].weight.detach().clone()
    fields = {"r": R, "init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}}
    quantlora.wrap(net, backend="normalfloat", use_dora=True, **fields)
    x = torch.randn(4, SIZE)
    wanted = x @ effective(net[0]).float().t() + net[0].bias
    torch.testing.assert_close(net(x), wanted, atol=1e-4, rtol=1e-4)
    assert error(net[0], weight) < plain(weight, 4)


def test_the_result_depends_on_the_path_not_on_the_order():
    net = model(layers=2)
    alone = copy.deepcopy(net)
    loftq(net, loftq_iter=2)
    fields = {"init_lora_weights": "loftq", "loftq_config": {"loftq_iter": 2}}
    quantlora.wrap(alone, backend="normalfloat", r=R, lora_alpha=R, target_modules=["1"], **fields)
    assert torch.equal(net[1].lora_A["default"].weight, alone[1].lora_A["default"].weight)


def test_a_callback_takes_back_the_layers_it_refuses():
    net = model(layers=2)
    floats = {str(i): layer.weight.detach().clone() for i, layer in enumerate(net)}
    quantlora.wrap(net, backend="normalfloat", r=R)
    before = net[0].lora_A["default"].weight.detach().clone()
    kept = replace_lora_weights_loftq(net, floats.get, callback=lambda model, path: path == "1")
    assert kept == ["1"]
    assert torch.equal(net[0].lora_A["default"].weight, before)
    assert error(net[1], floats["1"]) < plain(floats["1"], 4)


def test_without_a_config_the_error_is_the_known_one():
    text = "^`loftq_config` must be specified when `init_lora_weights` is 'loftq'.\n"
    with pytest.raises(ConfigError, match=text):
        quantlora.wrap(model(), backend="normalfloat", init_lora_weights="loftq")


@pytest.mark.parametrize(
    ("backend", "bits", "text"),
    [
        ("normalfloat", 5, r"Only support 2, 3, 4, 8 bits quantization.*'normalfloat'.*got 5"),
        ("bitsandbytes_4bit", 2, r"Only support 2, 4, 8 bits quantization.*offers 4: got 2"),
    ],
)
def test_bits_that_the_backend_lacks_are_refused_before_anything_changes(backend, bits, text):
    net = model()
    with pytest.raises(ValueError, match=text):
        loftq(net, backend, loftq_bits=bits)
    assert type(net[0]) is nn.Linear


@pytest.mark.parametrize("packed", [False, True])
def test_without_a_float_weight_to_come_near_to_the_error_says_how_to_give_one(packed):
    net = model()
    if packed:
        net = nn.Sequential(NormalFloatQuantizer().quantize(net[0]))
    with pytest.raises(BackendError, match="reference=" if packed else "Give a backend"):
        loftq(net, "auto")
    assert isinstance(net[0], (nn.Linear, NormalFloatLinear))


@pytest.mark.parametrize(
    ("weight", "text"),
    [(torch.zeros(3, 3), "shape"), (torch.full((SIZE, SIZE), torch.nan), "NaN")],
)
def test_a_reference_that_does_not_fit_is_named_by_its_path(weight, text):
    net = nn.Sequential(NormalFloatQuantizer().quantize(model()[0]))
    fields = {"init_lora_weights": "loftq", "loftq_config": {"loftq_iter": 1}}
    with pytest.raises(ConfigError, match=f"^0: the reference weight .*{text}"):
        quantlora.wrap(net, reference=lambda path: weight, **fields)


@pytest.mark.parametrize("config", [{"loftq_iter": 0}, {"loftq_steps": 1}, {"method": "svd"}])
def test_a_wrong_setting_is_refused(config):
    with pytest.raises(ConfigError):
        quantlora.wrap(
            model(), backend="normalfloat", init_lora_weights="loftq", loftq_config=config
        )


@pytest.mark.parametrize("mode", ["requantize", "dequantize"])
def test_nothing_is_fitted_to_a_merged_base(mode):
    net = model()
    floats = {"0": net[0].weight.detach().clone()}
    quantlora.wrap(net, backend="normalfloat", r=R)
    quantlora.merge(net, mode=mode)
    with pytest.raises(AdapterError, match=r"^0: default is merged into the base; call .*unmerge"):
        replace_lora_weights_loftq(net, floats.get)
    assert not net[0].lora_B["default"].weight.any()
