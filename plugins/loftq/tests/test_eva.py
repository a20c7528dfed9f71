"""EVA: first values from activations alone, on any format; PEFT finds the same space."""

import copy

import pytest
import torch
from quantlora_loftq import EvaConfig, initialize_lora_eva_weights
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import quantlora
from quantlora import AdapterWarning, ConfigError

pytestmark = pytest.mark.filterwarnings("ignore:init_lora_weights='eva' needs data")
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 50}


@pytest.fixture
def llama():
    torch.manual_seed(0)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    net = LlamaForCausalLM(LlamaConfig(**SIZES, **heads)).eval()
    net.model.embed_tokens.weight.data *= torch.logspace(0, -2, 32)  # a spectrum that falls
    return net


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(1)
    tokens = [torch.randint(50, (8, 16), generator=generator) for _ in range(4)]
    return [{"input_ids": one, "labels": one.clone()} for one in tokens]


def eva(net, **fields):
    fields = {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"], **fields}
    return quantlora.wrap(net, init_lora_weights="eva", **fields)


def inputs_of(net, path, batches):
    seen = []
    handle = net.get_submodule(path).register_forward_pre_hook(lambda m, i: seen.append(i[0]))
    with torch.no_grad():
        for batch in batches:
            net(**batch)
    handle.remove()
    return torch.cat(seen).flatten(0, 1).double()


def overlap(A, other):
    """Mean squared cosine of the principal angles of two row spaces; 1: the same space."""
    one, two = (torch.linalg.qr(x.detach().double().t()).Q for x in (A, other))
    return float((one.t() @ two).square().sum() / min(one.shape[1], two.shape[1]))


@pytest.mark.parametrize(
    "backend", ["auto", "normalfloat", "bitsandbytes_4bit", "bitsandbytes_8bit"]
)
def test_a_spans_the_principal_directions_of_the_input(llama, batches, backend):
    net = eva(llama, backend=backend, eva_config=EvaConfig(rho=1, tau=1))
    plain = net(**batches[0]).logits
    initialize_lora_eva_weights(net, batches)
    torch.testing.assert_close(net(**batches[0]).logits, plain)
    path = "model.layers.1.mlp.down_proj"
    x = inputs_of(net, path, batches)
    wanted = torch.linalg.svd(x - x.mean(0)).Vh[:4]
    assert overlap(net.get_submodule(path).lora_A["default"].weight, wanted) > 0.95


@pytest.mark.parametrize("rho", [1.0, 2.0])
def test_peft_finds_the_same_space_and_the_same_ranks(llama, batches, rho):
    peft = pytest.importorskip("peft")
    ours = eva(copy.deepcopy(llama), eva_config=peft.EvaConfig(rho=rho))
    dealt = initialize_lora_eva_weights(ours, batches)
    targets = ["q_proj", "v_proj", "down_proj"]
    config = peft.LoraConfig(
        r=4, target_modules=targets, init_lora_weights="eva", eva_config=peft.EvaConfig(rho=rho)
    )
    theirs = peft.get_peft_model(llama, config)
    peft.initialize_lora_eva_weights(theirs, batches, show_progress_bar=False)
    found = {p: m for p, m in theirs.base_model.model.named_modules() if hasattr(m, "lora_A")}
    assert sum(dealt.values()) == 4 * 6
    for path, r in dealt.items():
        assert abs(r - (found[path].r["default"] if path in found else 0)) <= 1
    for path, layer in quantlora.lora_layers(ours):
        if path in found:
            both = (one.lora_A["default"].weight for one in (layer, found[path]))
            assert overlap(*both) > 0.9


def test_files_go_both_ways(llama, batches, tmp_path):
    peft = pytest.importorskip("peft")
    base = copy.deepcopy(llama)
    net = eva(llama, eva_config={"rho": 3.0})
    dealt = initialize_lora_eva_weights(net, batches)
    assert len(set(dealt.values())) > 1
    for _, layer in quantlora.lora_layers(net):
        nn.init.normal_(layer.lora_B["default"].weight)
    quantlora.save_adapter(net, tmp_path)
    wanted = net(**batches[0]).logits
    again = quantlora.load_adapter(copy.deepcopy(base), tmp_path)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path)
    torch.testing.assert_close(again(**batches[0]).logits, wanted)
    torch.testing.assert_close(theirs(**batches[0]).logits, wanted)
    theirs.save_pretrained(tmp_path / "theirs")
    quantlora.load_adapter(quantlora.unload(again), tmp_path / "theirs")


def test_a_layer_of_rank_zero_loses_the_adapter(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    net[0].weight.data = torch.eye(16) * 1e-3 + torch.randn(16, 1) @ torch.randn(1, 16)
    base = copy.deepcopy(net)
    eva(net, r=1, target_modules=["0", "1"], eva_config={"rho": 2})
    x = torch.randn(64, 16)
    dealt = initialize_lora_eva_weights(net, [x])
    assert dealt == {"0": 0, "1": 2} or min(dealt.values()) >= 1
    quantlora.save_adapter(net, tmp_path)
    torch.testing.assert_close(quantlora.load_adapter(base, tmp_path)(x), net(x))


def test_alpha_follows_the_rank(llama, batches):
    net = eva(llama, lora_alpha=8)
    initialize_lora_eva_weights(net, batches)
    assert {layer.scaling["default"] for _, layer in quantlora.lora_layers(net)} == {2.0}


def test_masked_tokens_are_left_out(llama, batches):
    cut = [batch | {"labels": batch["labels"].clone()} for batch in batches]
    for batch in cut:
        batch["labels"][:, 8:] = -100
        batch["input_ids"] = batch["input_ids"].clone()
    net, other = eva(copy.deepcopy(llama)), eva(llama)
    initialize_lora_eva_weights(net, cut)
    for batch in cut:
        batch["input_ids"][:, 8:] = 0  # causal: earlier tokens do not see them
    initialize_lora_eva_weights(other, cut)
    for (_, one), (_, two) in zip(
        quantlora.lora_layers(net), quantlora.lora_layers(other), strict=True
    ):
        torch.testing.assert_close(one.lora_A["default"].weight, two.lora_A["default"].weight)


def test_wrap_says_that_data_is_needed():
    with pytest.warns(AdapterWarning, match="initialize_lora_eva_weights"):
        eva(nn.Sequential(nn.Linear(8, 8)), target_modules=["0"])


def test_batches_that_are_too_small_are_named():
    net = eva(nn.Sequential(nn.Linear(8, 8)), target_modules=["0"])
    with pytest.raises(ConfigError, match="no batch has as many tokens"):
        initialize_lora_eva_weights(net, [torch.randn(2, 8)])


def test_another_initializer_is_refused():
    net = quantlora.wrap(nn.Sequential(nn.Linear(8, 8)), r=2)
    with pytest.raises(ConfigError, match="EVA is for"):
        initialize_lora_eva_weights(net, [torch.randn(9, 8)])


@pytest.mark.parametrize("fields", [{"rho": 0.5}, {"tau": 2}, {"rhoo": 1}])
def test_wrong_settings_are_named(fields):
    with pytest.raises(ConfigError, match=r"rho|tau"):
        eva(nn.Sequential(nn.Linear(8, 8)), target_modules=["0"], eva_config=fields)


@pytest.mark.parametrize(
    "name", ["Gaussian", "PiSSA", "OLoRA", "ORTHOGONAL", "Eva", "pissa_niter_4"]
)
def test_names_are_taken_as_peft_takes_them(name):
    net = quantlora.wrap(nn.Sequential(nn.Linear(16, 16)), r=4, init_lora_weights=name)
    assert net[0].adapters == ("default",)


def test_more_passes_come_nearer_to_pissa():
    torch.manual_seed(0)
    weight = torch.randn(64, 48)
    exact = torch.linalg.svdvals(weight.double())[:4].square().sum()
    shares = []
    for name in ("pissa_niter_0", "pissa_niter_8", "pissa"):
        layer = nn.Linear(48, 64)
        layer.weight.data = weight.clone()
        lora = quantlora.wrap(nn.Sequential(layer), r=4, init_lora_weights=name)[0]
        shares.append(float(lora.delta_weight("default", None).square().sum() / exact))
    assert shares[0] < shares[1] <= shares[2] * 1.0001
    assert shares[2] == pytest.approx(1.0, rel=1e-4)
