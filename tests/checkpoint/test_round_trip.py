"""Save and load: the same bits here, the same outputs in PEFT, both ways."""

from __future__ import annotations

import warnings

import pytest
import torch

import quantlora

CONFIGS = {
    "default": {},
    "names": {"target_modules": ["q_proj", "v_proj"], "lora_alpha": 32},
    "regex": {"target_modules": r".*\.(q|k)_proj"},
    "one path": {"target_modules": ["model.layers.1.mlp.up_proj"]},
    "exclude": {"exclude_modules": ["o_proj"]},
    "rslora": {"use_rslora": True, "r": 8},
    "rank pattern": {"rank_pattern": {"q_proj": 2, r"layers\.1\.mlp.*": 6}},
    "alpha pattern": {"alpha_pattern": {"down_proj": 3}},
    "lora bias": {"lora_bias": True},
    "layers": {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]},
    "dora": {"use_dora": True},
    "dropout": {"lora_dropout": 0.1},
}
each_config = pytest.mark.parametrize("fields", CONFIGS.values(), ids=CONFIGS.keys())


def relative_difference(a, b):
    return float((a - b).norm() / b.norm())


@each_config
def test_reloaded_adapter_gives_the_same_logits_bit_for_bit(
    fields, make_wrapped, make_base, logits, tmp_path
):
    model = make_wrapped(**fields)
    quantlora.save_adapter(model, tmp_path)
    again = quantlora.load_adapter(make_base(), tmp_path)
    assert torch.equal(logits(again), logits(model))
    assert not torch.equal(logits(again), logits(make_base()))


@each_config
def test_peft_reads_our_files_to_the_same_logits(
    fields, make_wrapped, make_base, logits, tmp_path, peft
):
    model = make_wrapped(**fields)
    quantlora.save_adapter(model, tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(missing|unexpected|Unexpected).*")
        theirs = peft.PeftModel.from_pretrained(make_base(), tmp_path)
    assert relative_difference(logits(theirs), logits(model)) < 1e-5


@each_config
def test_files_written_by_peft_give_the_same_logits_here(
    fields, make_base, logits, tmp_path, randomize, peft
):
    fields = {"r": 4, "target_modules": "all-linear", **fields}
    theirs = randomize(peft.get_peft_model(make_base(), peft.LoraConfig(**fields)))
    theirs.save_pretrained(tmp_path)
    ours = quantlora.load_adapter(make_base(), tmp_path)
    assert relative_difference(logits(ours), logits(theirs)) < 1e-5


def test_two_adapters_lie_in_peft_s_folders_and_load_by_name(
    make_wrapped, make_base, logits, tmp_path
):
    model = make_wrapped()
    quantlora.wrap(model, r=2, adapter_name="second", init_lora_weights=False)
    for name in ("default", "second"):
        quantlora.save_adapter(model, tmp_path, name)
    again = quantlora.load_adapter(make_base(), tmp_path)
    quantlora.load_adapter(again, tmp_path, "second")
    for chosen in ("default", "second", ["default", "second"]):
        quantlora.set_adapter(model, chosen)
        quantlora.set_adapter(again, chosen)
        assert torch.equal(logits(again), logits(model))


def test_peft_reads_both_of_our_adapters(make_wrapped, make_base, logits, tmp_path, peft):
    model = make_wrapped()
    quantlora.wrap(model, r=2, adapter_name="second", init_lora_weights=False)
    for name in ("default", "second"):
        quantlora.save_adapter(model, tmp_path, name)
    theirs = peft.PeftModel.from_pretrained(make_base(), tmp_path)
    theirs.load_adapter(tmp_path / "second", "second")
    for name in ("default", "second"):
        quantlora.set_adapter(model, name)
        theirs.set_adapter(name)
        assert relative_difference(logits(theirs), logits(model)) < 1e-5


def test_adapter_loads_under_another_name(make_wrapped, make_base, logits, tmp_path):
    model = make_wrapped()
    quantlora.save_adapter(model, tmp_path)
    again = quantlora.load_adapter(make_base(), tmp_path, "renamed")
    assert quantlora.active_adapters(again) == ["renamed"]
    assert torch.equal(logits(again), logits(model))


def test_loaded_adapter_is_frozen_unless_trainable(make_wrapped, make_base, tmp_path):
    quantlora.save_adapter(make_wrapped(), tmp_path)
    frozen = quantlora.load_adapter(make_base(), tmp_path)
    assert not any(p.requires_grad for p in frozen.parameters())
    trained = quantlora.load_adapter(make_base(), tmp_path, is_trainable=True)
    names = {name for name, p in trained.named_parameters() if p.requires_grad}
    assert names == {name for name, _ in trained.named_parameters() if "lora_" in name}


def test_values_come_from_state_dict_where_one_is_given(make_wrapped, make_base, tmp_path):
    model = make_wrapped()
    halved = {name: tensor / 2 for name, tensor in model.state_dict().items()}
    quantlora.save_adapter(model, tmp_path, state_dict=halved)
    again = dict(quantlora.load_adapter(make_base(), tmp_path).named_parameters())
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            assert torch.equal(again[name], parameter / 2)


def test_paths_are_those_of_the_plain_model_also_under_compile(make_wrapped, make_base, tmp_path):
    model = make_wrapped()
    compiled = torch.compile(model)
    quantlora.save_adapter(compiled, tmp_path)
    again = quantlora.load_adapter(make_base(), tmp_path)
    assert dict(again.named_parameters()).keys() == dict(model.named_parameters()).keys()


def test_plain_module_takes_an_adapter_too(tmp_path):
    def plain():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))

    model = quantlora.wrap(plain(), r=2, init_lora_weights=False)
    quantlora.save_adapter(model, tmp_path)
    x = torch.randn(3, 8)
    assert torch.equal(quantlora.load_adapter(plain(), tmp_path)(x), model(x))


def test_float_model_is_quantized_on_the_way_where_a_backend_is_asked_for(
    make_base, logits, tmp_path
):
    options = {"bits": 8}
    model = quantlora.wrap(
        make_base(), r=2, backend="normalfloat", quantize_options=options, init_lora_weights=False
    )
    quantlora.save_adapter(model, tmp_path)
    again = quantlora.load_adapter(
        make_base(), tmp_path, backend="normalfloat", quantize_options=options
    )
    assert torch.equal(logits(again), logits(model))


@pytest.mark.filterwarnings("ignore")  # of ranks above the layer's, and PEFT's of empty tensors
def test_a_layer_of_no_outputs_is_not_taken_for_a_shard(tmp_path, peft):
    """MobileBERT's head has such a layer where embeddings are as wide as the rest."""
    from transformers import MobileBertConfig, MobileBertForMaskedLM

    names = ("hidden_size", "embedding_size", "intra_bottleneck_size", "intermediate_size")
    sizes = dict.fromkeys(names, 16) | {"vocab_size": 32, "num_hidden_layers": 1}
    config = MobileBertConfig(**sizes, num_attention_heads=2)

    def make():
        torch.manual_seed(0)
        return MobileBertForMaskedLM(config).eval()

    fields = {"target_modules": ["query", "cls.predictions.dense"], "r": 2}
    model = quantlora.wrap(make(), **fields, init_lora_weights=False)
    assert model.cls.predictions.dense.out_features == 0
    quantlora.save_adapter(model, tmp_path)
    ids = torch.arange(6)[None]
    wanted = model(ids).logits
    for again in (
        quantlora.load_adapter(make(), tmp_path),
        peft.PeftModel.from_pretrained(make(), tmp_path),
    ):
        assert relative_difference(again(ids).logits, wanted) < 1e-5
