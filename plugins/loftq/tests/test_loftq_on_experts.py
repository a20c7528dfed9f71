"""LoftQ and QERA on the fused experts of a mixture: each as a layer of its own would get it."""

import copy

import pytest
import quantlora_loftq
import torch
from quantlora_loftq import LoftQConfig
from quantlora_loftq.command.recipe import Recipe
from quantlora_loftq.command.run import run

import quantlora
from quantlora.errors import BackendError, ConfigError

pytest.importorskip("transformers.conversion_mapping")  # Transformers 5

IDS = torch.arange(24).reshape(2, 12)
STACKS = ("gate_up_proj", "down_proj")


def mixture(kind="mixtral"):
    from transformers import GptOssConfig, GptOssForCausalLM, MixtralConfig, MixtralForCausalLM

    sizes = {
        "vocab_size": 83, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "num_local_experts": 4, "num_experts_per_tok": 2, "pad_token_id": 2,
    }  # fmt: skip
    torch.manual_seed(0)
    known = {
        "mixtral": (MixtralForCausalLM, MixtralConfig),
        "gpt": (GptOssForCausalLM, GptOssConfig),
    }
    model, config = known[kind]
    found = model(config(**sizes))
    for parameter in found.parameters():
        parameter.data = 0.2 * torch.randn_like(parameter)
    return found.eval()


def wrapped(model, init, backend="normalfloat", **options):
    config = LoftQConfig(**{"loftq_iter": 3, **options})
    targets = {"target_modules": "all-linear", "r": 4, "backend": backend}
    return quantlora.wrap(model, init_lora_weights=init, loftq_config=config, **targets).eval()


def matrices(layer, name):
    """W + ΔW of each expert, as the layer has it."""
    return layer._read(name) + layer.deltas("default")[name]


@pytest.mark.parametrize(
    ("kind", "backend"), [("mixtral", "bitsandbytes_4bit"), ("gpt", "normalfloat")]
)
def test_each_expert_gets_what_a_layer_with_its_weight_gets(kind, backend):
    plain = mixture(kind)
    model = wrapped(copy.deepcopy(plain), "loftq", backend)
    layer = model.model.layers[0].mlp.experts
    for name in STACKS:
        weight = getattr(plain.model.layers[0].mlp.experts, name)[3].detach()
        weight = weight.t() if kind == "gpt" else weight
        linear = torch.nn.Sequential(torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False))
        linear[0].weight.data = weight.clone()
        single = wrapped(linear, "loftq", backend, method="exact")[0]
        found = matrices(layer, name)[3].detach()
        error = float((found.t() if kind == "gpt" else found).sub(weight).norm())
        wanted = float(
            (single.dequantize() + single.delta_weight("default", None)).sub(weight).norm()
        )
        assert error < 1.02 * wanted


def test_outputs_are_nearer_to_the_float_model_than_without():
    plain = mixture()
    with torch.no_grad():
        wanted = plain(IDS).logits
        errors = [
            float((wrapped(copy.deepcopy(plain), init, loftq_bits=2)(IDS).logits - wanted).norm())
            if init == "loftq"
            else float((quantlora.quantize(copy.deepcopy(plain), backend="normalfloat",
                        quantize_options={"bits": 2})(IDS).logits - wanted).norm())
            for init in ("loftq", "none")
        ]  # fmt: skip
    assert errors[0] < errors[1]


def test_qera_weighs_each_expert_by_its_own_inputs():
    plain = mixture()
    squares = quantlora_loftq.input_mean_squares(plain, [IDS])
    assert squares["model.layers.1.mlp.experts.down_proj.3"].shape == (48,)
    model = wrapped(copy.deepcopy(plain), "qera", calibration=squares, loftq_iter=1)
    other = wrapped(copy.deepcopy(plain), "loftq", loftq_iter=1)
    path, expert = "model.layers.1.mlp.experts", 2
    weight = plain.get_submodule(path).down_proj[expert].detach()
    root = squares[f"{path}.down_proj.{expert}"].sqrt()
    errors = [
        float(((matrices(m.get_submodule(path), "down_proj")[expert] - weight) * root).norm())
        for m in (model, other)
    ]
    assert errors[0] < errors[1]


def test_the_adapter_is_for_the_base_that_was_saved_with_it(tmp_path):
    plain = mixture()
    model = wrapped(copy.deepcopy(plain), "loftq")
    with torch.no_grad():
        wanted = model(IDS).logits
    with pytest.warns(quantlora.errors.AdapterWarning, match="fits the changed base"):
        quantlora.save_adapter(model, tmp_path / "adapter")
    quantlora.save_packed(quantlora.unload(model), tmp_path / "base")
    again = quantlora.load_adapter(quantlora.load(tmp_path / "base"), tmp_path / "adapter").eval()
    with torch.no_grad():
        assert torch.allclose(again(IDS).logits, wanted, atol=1e-5)
    packed = quantlora.quantize(plain, backend="normalfloat")
    with pytest.raises(quantlora.AdapterFileError, match="this is the original one"):
        quantlora.load_adapter(packed, tmp_path / "adapter")


def test_what_cannot_be_is_named():
    packed = quantlora.quantize(mixture(), backend="normalfloat")
    with pytest.raises(BackendError, match="these are packed already"):
        quantlora.wrap(
            packed, init_lora_weights="loftq", loftq_config=LoftQConfig(), target_modules=[],
            target_parameters=["experts.down_proj"],
        )  # fmt: skip
    with pytest.raises(ConfigError, match="experts can stay packed only"):
        wrapped(mixture(), "loftq", fake=True)


def test_the_command_refuses_experts_and_says_what_to_do(tmp_path):
    mixture().save_pretrained(tmp_path / "float")
    with pytest.raises(ConfigError) as refusal:
        run(Recipe(str(tmp_path / "float")), tmp_path / "out")
    assert str(refusal.value) == (
        "model.layers.0.mlp.experts: quantlora loftq packs linear layers, and these are fused "
        "experts. --exclude-modules experts leaves them float. To pack them, load the float model "
        'and call quantlora.wrap(model, backend=..., init_lora_weights="loftq", loftq_config=...); '
        "then save_adapter, unload and save_packed, in this order."
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["experts", "mlp.experts"])
def test_the_command_packs_what_is_not_excluded(name, tmp_path):
    mixture().save_pretrained(tmp_path / "float")
    recipe = Recipe(str(tmp_path / "float"), rank=4, iterations=1, exclude_modules=[name])
    folder = run(recipe, tmp_path / "out")
    model = quantlora.load(folder)
    quantlora.load_adapter(model, folder / "loftq_init", backend="saved")
    layer = model.model.layers[1]
    assert layer.self_attn.q_proj.quantizer.name == "bitsandbytes_4bit"
    wanted = mixture().model.layers[1].mlp.experts.down_proj
    assert torch.equal(layer.mlp.experts.down_proj, wanted)


def test_what_the_refusal_advises_comes_back_as_it_was(tmp_path):
    model = wrapped(mixture(), "loftq")
    wanted = model(IDS).logits
    quantlora.save_adapter(model, tmp_path / "adapter")
    quantlora.unload(model)
    quantlora.save_packed(model, tmp_path / "packed")
    again = quantlora.load(tmp_path / "packed")
    quantlora.load_adapter(again, tmp_path / "adapter")
    assert torch.equal(again(IDS).logits, wanted)
