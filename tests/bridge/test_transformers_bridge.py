"""A wrapped Transformers model stays one: its adapter methods work, without PEFT."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import weakref

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

import quantlora
from quantlora import AdapterError, AdapterWarning
from quantlora.testing.models import tiny_llama

TOKENS = torch.arange(8)[None]


def base():
    return tiny_llama(num_hidden_layers=1).eval()


@pytest.fixture
def model():
    """Wrapped, with an adapter that changes the output."""
    return quantlora.wrap(base(), r=2, init_lora_weights=False)


@torch.no_grad()
def logits(model):
    return model(TOKENS).logits


def test_trainer_s_flag_is_set_and_the_class_is_what_it_was(model):
    assert model._hf_peft_config_loaded is True
    assert type(model) is LlamaForCausalLM


def test_forward_generate_and_config_are_unchanged(model):
    plain = base()
    assert model.config.to_dict() == plain.config.to_dict()
    quantlora.disable_adapters(model)
    assert torch.equal(logits(model), logits(plain))
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(TOKENS, **options), plain.generate(TOKENS, **options))


def test_save_pretrained_writes_the_adapter_only(model, tmp_path):
    model.save_pretrained(tmp_path)
    names = {"README.md", "adapter_config.json", "adapter_model.safetensors", "quantlora.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert torch.equal(logits(quantlora.load_adapter(base(), tmp_path)), logits(model))


def test_one_active_adapter_goes_into_the_folder_itself_whatever_its_name(model, tmp_path):
    model.add_adapter(quantlora.LoraConfig(r=3), "second")
    model.save_pretrained(tmp_path)
    assert '"r": 3' in (tmp_path / "adapter_config.json").read_text()


def test_several_active_adapters_go_to_peft_s_folders(model, tmp_path):
    model.add_adapter(quantlora.LoraConfig(r=3), "second")
    model.set_adapter(["default", "second"])
    model.save_pretrained(tmp_path)
    assert '"r": 2' in (tmp_path / "adapter_config.json").read_text()
    assert '"r": 3' in (tmp_path / "second" / "adapter_config.json").read_text()


def test_only_the_main_process_writes(model, tmp_path):
    model.save_pretrained(tmp_path / "out", is_main_process=False)
    assert not (tmp_path / "out").exists()


def test_pickles_are_not_written_even_where_asked_for(model, tmp_path):
    with pytest.warns(AdapterWarning, match="safetensors only"):
        model.save_pretrained(tmp_path, safe_serialization=False)
    assert (tmp_path / "adapter_model.safetensors").exists()


def test_load_adapter_loads_from_a_folder_and_activates(model, tmp_path):
    model.save_pretrained(tmp_path)
    model.load_adapter(tmp_path, "again", is_trainable=True)
    assert model.active_adapters() == ["again"]
    assert any(p.requires_grad for n, p in model.named_parameters() if ".again." in n)


def test_load_adapter_loads_from_memory_with_peft_s_config(model):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"])
    name = "model.layers.0.self_attn.q_proj.lora_"
    tensors = {f"{name}A.weight": torch.ones(2, 64), f"{name}B.weight": torch.ones(64, 2)}
    model.load_adapter(adapter_name="given", peft_config=config, adapter_state_dict=tensors)
    model.set_adapter("given")
    found = model.get_adapter_state_dict()
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[key], tensors[key]) for key in tensors)


def test_load_adapter_without_a_source_says_what_to_give(model):
    with pytest.raises(AdapterError, match="peft_config and adapter_state_dict"):
        model.load_adapter()


def test_hot_swap_replaces_the_values_of_a_name_that_is_there(model, tmp_path):
    other = quantlora.wrap(base(), r=4, init_lora_weights=False)
    other.save_pretrained(tmp_path)
    model.enable_peft_hotswap(target_rank=4)
    model.load_adapter(tmp_path, "default")
    assert model.active_adapters() == ["default"]
    assert float((logits(model) - logits(other)).norm() / logits(other).norm()) < 1e-5


def test_name_that_is_there_is_refused_without_hot_swap(model, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match="exists already"):
        model.load_adapter(tmp_path, "default")


def test_add_adapter_takes_peft_s_config(model):
    peft = pytest.importorskip("peft")
    model.add_adapter(peft.LoraConfig(r=3, target_modules={"q_proj"}), "second")
    assert model.active_adapter() == "second"
    assert model.model.layers[0].self_attn.q_proj.r == {"default": 2, "second": 3}


def test_adapters_are_disabled_and_enabled(model):
    with_adapter = logits(model)
    model.disable_adapters()
    assert torch.equal(logits(model), logits(base()))
    model.enable_adapters()
    assert torch.equal(logits(model), with_adapter)


def test_deleting_the_last_adapter_gives_the_plain_model_back(model, tmp_path):
    model.add_adapter(quantlora.LoraConfig(r=3), "second")
    model.delete_adapter(["default", "second"])
    assert not any(isinstance(one, quantlora.LoraLayer) for one in model.modules())
    assert not model._hf_peft_config_loaded
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()


def test_unload_gives_the_class_s_own_methods_back(model):
    quantlora.unload(model)
    assert vars(model).keys() == vars(base()).keys()
    assert torch.equal(logits(model), logits(base()))


def test_get_adapter_state_dict_has_the_file_s_keys_without_prefix(model):
    keys = set(model.get_adapter_state_dict())
    assert "model.layers.0.self_attn.q_proj.lora_A.weight" in keys
    assert len(keys) == 14


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_methods_of_a_copy_act_on_the_copy(model, copied):
    other = copied(model)
    other.disable_adapters()
    assert not torch.equal(logits(other), logits(model))
    assert torch.equal(logits(other), logits(base()))


def test_methods_do_not_keep_the_model_in_memory(model):
    alone = weakref.ref(quantlora.wrap(base(), r=2))
    gc.disable()
    try:
        one = quantlora.wrap(base(), r=2)
        alone = weakref.ref(one)
        del one
        assert alone() is None
    finally:
        gc.enable()


def test_methods_show_their_signatures(model):
    assert "save_directory" in inspect.signature(model.save_pretrained).parameters
    assert "model" not in inspect.signature(model.save_pretrained).parameters


def test_trained_parameters_alone_are_a_complete_state_dict(model):
    trained = {n: p.detach() + 1 for n, p in model.named_parameters() if p.requires_grad}
    result = model.load_state_dict(trained, strict=False)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    first = next(iter(trained))
    assert torch.equal(model.get_parameter(first), trained.pop(first))
    assert model.load_state_dict(trained, strict=False).missing_keys == [first]
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(trained)


def test_plain_module_gets_no_methods():
    model = quantlora.wrap(nn.Sequential(nn.Linear(4, 4)), r=2)
    assert not hasattr(model, "save_pretrained")


def test_failing_wrap_attaches_nothing():
    model = base()
    before = set(vars(model))
    with pytest.raises(quantlora.ConfigError, match=r"down_proj: rank 1000000 is larger"):
        quantlora.wrap(model, r=2, rank_pattern={"down_proj": 10**6}, init_lora_weights="pissa")
    assert set(vars(model)) == before


def test_trainers_card_names_the_adapters_library(tmp_path):
    (tmp_path / "README.md").write_text("---\nlibrary_name: peft\n---\nBy Trainer.\n")
    model = quantlora.wrap(tiny_llama(), r=2)
    model.create_or_update_model_card(str(tmp_path))
    text = (tmp_path / "README.md").read_text()
    assert "- quantlora" in text
    assert text.endswith("By Trainer.\n")
