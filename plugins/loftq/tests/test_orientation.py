"""GPT-2 stores its layers transposed (`Conv1D`); packed, they do not know it any more."""

import copy

import pytest
import torch
from quantlora_loftq import replace_lora_weights_loftq
from quantlora_normalfloat import NormalFloatQuantizer
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import quantlora

LOFTQ = {"r": 4, "init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}}
PATHS = ("transformer.h.0.attn.c_proj", "transformer.h.0.attn.c_attn")


@pytest.fixture
def gpt2():
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 50, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(**sizes)).eval()


@pytest.fixture
def packed(gpt2):
    net = copy.deepcopy(gpt2)
    return quantlora.unload(quantlora.wrap(net, backend="normalfloat"))


def errors(net, floats):
    for path, layer in quantlora.lora_layers(net):
        weight = floats.get_submodule(path).weight.detach().t()
        plain = (weight - layer.dequantize()).norm()
        yield float((weight - layer.dequantize() - layer.delta_weight("default", None)).norm()) / (
            float(plain)
        )


@pytest.mark.parametrize("form", ["folder", "stored", "turned"])
def test_a_reference_is_taken_the_right_way_round(gpt2, packed, form, tmp_path):
    gpt2.save_pretrained(tmp_path)
    stored = lambda path: gpt2.get_submodule(path).weight.detach()  # noqa: E731
    given = {"folder": tmp_path, "stored": stored, "turned": lambda path: stored(path).t()}
    net = quantlora.wrap(packed, reference=given[form], **LOFTQ)
    assert max(errors(net, gpt2)) < 0.95


def test_replacing_takes_it_the_right_way_round(gpt2, packed, tmp_path):
    gpt2.save_pretrained(tmp_path)
    net = quantlora.wrap(packed, r=4)
    replace_lora_weights_loftq(net, tmp_path)
    assert max(errors(net, gpt2)) < 0.95


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_reference_for_a_float_layer_too(gpt2, init, tmp_path):
    gpt2.save_pretrained(tmp_path)
    tokens = torch.arange(5)[None]
    wanted = gpt2(tokens).logits
    net = quantlora.wrap(copy.deepcopy(gpt2), r=4, init_lora_weights=init, reference=tmp_path)
    torch.testing.assert_close(net(tokens).logits, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("init", ["pissa", "olora", "orthogonal", "loftq"])
def test_an_embedding_is_refused_by_name(gpt2, init):
    fields = LOFTQ | {"init_lora_weights": init, "target_modules": ["wte"]}
    given = {"reference": lambda path: gpt2.get_submodule(path).weight.detach()}
    with pytest.raises(quantlora.ConfigError, match=r"wte: .* is for linear layers"):
        quantlora.wrap(gpt2, **fields, **(given if init == "loftq" else {}))


def test_a_failure_in_the_middle_takes_every_layer_back():
    torch.manual_seed(0)
    floats = [nn.Linear(32, 32), nn.Linear(32, 32)]
    net = nn.Sequential(*[NormalFloatQuantizer().quantize(layer) for layer in floats])
    quantlora.wrap(net, r=4, use_dora=True)
    before = {name: p.clone() for name, p in net.state_dict().items()}

    def stops(model, path):
        if path == "1":
            raise KeyboardInterrupt
        return True

    with pytest.raises(KeyboardInterrupt):
        replace_lora_weights_loftq(net, lambda path: floats[int(path)].weight, callback=stops)
    assert all(torch.equal(now, before[name]) for name, now in net.state_dict().items())


@pytest.mark.parametrize("init", ["pissa", "olora", "loftq"])
@pytest.mark.parametrize("alpha", [-4.0, 1e10, 1e-6])
def test_any_scaling_but_zero_gives_the_same_start(init, alpha):
    outputs = []
    for lora_alpha in (4.0, alpha):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(32, 48))
        fields = LOFTQ | {"init_lora_weights": init, "lora_alpha": lora_alpha}
        quantlora.wrap(net, backend="normalfloat", **fields)
        outputs.append(net(torch.ones(2, 32)))
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("fields", [{"lora_alpha": 0}, {"alpha_pattern": {"0": 0}}])
@pytest.mark.parametrize("init", ["pissa", "olora", "loftq"])
def test_a_scaling_of_zero_is_refused_by_name(init, fields):
    net = nn.Sequential(nn.Linear(32, 48))
    with pytest.raises(quantlora.ConfigError, match=r"^0: .*divides them by lora_alpha / r"):
        quantlora.wrap(net, backend="normalfloat", **(LOFTQ | {"init_lora_weights": init} | fields))
    assert type(net[0]) is nn.Linear


@pytest.mark.parametrize("fake", [True, False])
def test_a_layer_that_is_float_again_is_stored_as_it_was(gpt2, fake, tmp_path):
    fields = LOFTQ | {"target_modules": ["attn.c_proj"]}
    fields["loftq_config"] = {"loftq_bits": 4, "fake": fake}
    net = quantlora.wrap(copy.deepcopy(gpt2), backend="normalfloat", **fields).eval()
    net = quantlora.merge_and_unload(net, mode="dequantize")
    tokens = torch.arange(5)[None]
    net.save_pretrained(tmp_path)
    again = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(tokens).logits, net(tokens).logits)
    assert type(net.transformer.h[0].attn.c_proj) is type(gpt2.transformer.h[0].attn.c_proj)
