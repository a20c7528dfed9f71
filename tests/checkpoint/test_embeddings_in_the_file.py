"""Embeddings whose vocabulary changed are in no checkpoint: they go with the adapter."""

from __future__ import annotations

import warnings

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, T5Config, T5ForConditionalGeneration

import quantlora
from quantlora import AdapterError, AdapterFileError, AdapterWarning
from quantlora.checkpoint.base_vocabulary import note_vocabulary

TOKENS = torch.tensor([[1, 5, 65, 7, 67, 2]])  # 65 and 67 are new
WITH_TARGETS = {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}
WITH_COPY = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}
FIELDS = [{"target_modules": ["q_proj"]}, WITH_TARGETS, WITH_COPY]


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def make_resized(request, make_base, tmp_path):
    """Makes the model that is loaded from a checkpoint and given four tokens, drawn by a seed."""
    make_base(tie_word_embeddings=request.param).save_pretrained(tmp_path / "base")

    def make(seed, rows=68, **options):
        model = LlamaForCausalLM.from_pretrained(tmp_path / "base", **options)
        torch.manual_seed(seed)
        if rows:
            model.resize_token_embeddings(rows, mean_resizing=False)
        return model.eval()

    return make


@torch.no_grad()
def logits(model, tokens=TOKENS):
    return model.eval()(tokens).logits.float()


def wrapped(model, **fields):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return quantlora.wrap(model, r=4, init_lora_weights=False, **fields)


def close(a, b):
    return float((a - b).norm() / b.norm()) < 1e-5


def keys_in(folder):
    keys = load_file(folder / "adapter_model.safetensors")
    return {key.removeprefix("base_model.model.") for key in keys if "lora_" not in key}


@pytest.mark.parametrize("fields", FIELDS, ids=["plain", "targets", "copy"])
def test_new_tokens_come_back_with_the_adapter(make_resized, tmp_path, fields):
    model = wrapped(make_resized(1), **fields)
    with pytest.warns(AdapterWarning, match="vocabulary has 68 tokens .* checkpoint 64"):
        quantlora.save_adapter(model, tmp_path)
    with pytest.warns(AdapterWarning, match="came with tensors of the base"):
        again = quantlora.load_adapter(make_resized(2), tmp_path)
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("fields", FIELDS, ids=["plain", "targets", "copy"])
@pytest.mark.filterwarnings("ignore")
def test_peft_computes_the_same_from_our_file(make_resized, tmp_path, peft, fields):
    model = wrapped(make_resized(1), **fields)
    quantlora.save_adapter(model, tmp_path)
    assert close(logits(peft.PeftModel.from_pretrained(make_resized(2), tmp_path)), logits(model))


@pytest.mark.parametrize("fields", FIELDS, ids=["plain", "targets", "copy"])
@pytest.mark.filterwarnings("ignore")
def test_peft_s_file_with_resized_embeddings_loads(make_resized, tmp_path, peft, fields):
    config = peft.LoraConfig(r=4, init_lora_weights=False, **fields)
    theirs = peft.get_peft_model(make_resized(1), config)
    theirs.save_pretrained(tmp_path)
    assert close(logits(quantlora.load_adapter(make_resized(2), tmp_path)), logits(theirs))


@pytest.mark.filterwarnings("ignore")
def test_save_pretrained_and_checkpoints_keep_the_new_tokens(make_resized, tmp_path):
    model = wrapped(make_resized(1), target_modules=["q_proj"])
    model.save_pretrained(tmp_path / "checkpoint-1")
    resumed = wrapped(make_resized(2), target_modules=["q_proj"])
    resumed.load_state_dict(
        load_file(tmp_path / "checkpoint-1" / "model.safetensors"), strict=False
    )
    again = quantlora.load_adapter(make_resized(3), tmp_path / "checkpoint-1")
    assert torch.equal(logits(resumed), logits(model))
    assert torch.equal(logits(again), logits(model))


@pytest.mark.filterwarnings("ignore")
def test_what_came_with_a_file_is_saved_again(make_resized, tmp_path):
    model = wrapped(make_resized(1, rows=None), target_modules=["q_proj"])
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(1.5)  # trained by hand, as some do
    quantlora.save_adapter(model, tmp_path / "a", save_embedding_layers=True)
    again = quantlora.load_adapter(make_resized(2, rows=None), tmp_path / "a")
    quantlora.save_adapter(again, tmp_path / "b")
    third = quantlora.load_adapter(make_resized(2, rows=None), tmp_path / "b")
    assert torch.equal(logits(third, TOKENS % 64), logits(model, TOKENS % 64))


def test_an_unchanged_vocabulary_is_not_written(make_resized, tmp_path):
    model = wrapped(make_resized(1, rows=None), **WITH_TARGETS)
    quantlora.save_adapter(model, tmp_path)
    assert keys_in(tmp_path) == set()


def test_embeddings_can_be_left_out(make_resized, tmp_path):
    model = wrapped(make_resized(1), target_modules=["q_proj"])
    quantlora.save_adapter(model, tmp_path, save_embedding_layers=False)
    assert keys_in(tmp_path) == set()


def test_a_checkpoint_that_is_gone_is_named(make_resized, tmp_path):
    model = wrapped(make_resized(1), target_modules=["q_proj"])
    model.name_or_path = "nobody/has-this"
    with pytest.warns(AdapterWarning, match="nobody/has-this, is not on this machine"):
        quantlora.save_adapter(model, tmp_path)


def test_a_checkpoint_without_a_config_is_named(make_resized, tmp_path):
    model = wrapped(make_resized(1), target_modules=["q_proj"])
    model.name_or_path = str(tmp_path)
    with pytest.warns(AdapterWarning, match=r"checkpoint, .*, has no config\.json, so nobody"):
        quantlora.save_adapter(model, tmp_path / "a")


def test_what_a_model_was_loaded_with_is_remembered(make_resized, tmp_path):
    """Of a file that has no config.json beside it, as GGUF's."""
    model = wrapped(make_resized(1, rows=None), target_modules=["q_proj"])
    model.name_or_path = str(tmp_path / "model.gguf")
    note_vocabulary(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", AdapterWarning)
        quantlora.save_adapter(model, tmp_path / "a")
    model.resize_token_embeddings(68, mean_resizing=False)
    with pytest.warns(AdapterWarning, match="vocabulary has 68 tokens .* checkpoint 64"):
        quantlora.save_adapter(model, tmp_path / "b")
    assert "model.embed_tokens.weight" in keys_in(tmp_path / "b")


@pytest.mark.filterwarnings("ignore")
def test_a_base_that_was_not_resized_is_told_how(make_resized, tmp_path):
    quantlora.save_adapter(wrapped(make_resized(1), target_modules=["q_proj"]), tmp_path)
    base = make_resized(2, rows=None)
    with pytest.raises(AdapterFileError, match=r"resize_token_embeddings\(68\)"):
        quantlora.load_adapter(base, tmp_path)
    assert not any("lora" in name for name, _ in base.named_modules())


@pytest.mark.filterwarnings("ignore")
def test_other_adapters_keep_the_embeddings_they_were_trained_with(make_resized, tmp_path):
    quantlora.save_adapter(wrapped(make_resized(1), target_modules=["q_proj"]), tmp_path)
    model = wrapped(make_resized(2), target_modules=["v_proj"])
    before = logits(model)
    with pytest.raises(AdapterFileError, match="load it first, or on a model of its own"):
        quantlora.load_adapter(model, tmp_path, "second")
    assert torch.equal(logits(model), before)


@pytest.mark.filterwarnings("ignore")
def test_a_failing_load_leaves_the_embeddings(make_resized, tmp_path, monkeypatch):
    quantlora.save_adapter(wrapped(make_resized(1), target_modules=["q_proj"]), tmp_path)
    base = make_resized(2)
    before = logits(base)
    monkeypatch.setattr("quantlora.checkpoint.load.fill", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        quantlora.load_adapter(base, tmp_path)
    assert torch.equal(logits(base), before)


def test_embeddings_of_another_dtype_are_no_changed_base(make_resized, tmp_path, peft):
    config = peft.LoraConfig(r=4, init_lora_weights=False, target_modules=["embed_tokens"])
    theirs = peft.get_peft_model(make_resized(1, None, dtype=torch.float16), config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", AdapterWarning)
        ours = quantlora.load_adapter(make_resized(1, None, dtype=torch.bfloat16), tmp_path)
    again = peft.PeftModel.from_pretrained(make_resized(1, None, dtype=torch.bfloat16), tmp_path)
    tokens = TOKENS % 64
    difference = (logits(ours, tokens) - logits(again, tokens)).norm() / logits(
        again, tokens
    ).norm()
    assert difference < 0.02  # bfloat16


@pytest.mark.filterwarnings("ignore")
def test_all_embeddings_of_an_encoder_and_a_decoder_are_kept(tmp_path):
    config = T5Config(
        vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2,
        decoder_start_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "base")

    def make(seed):
        model = T5ForConditionalGeneration.from_pretrained(tmp_path / "base").eval()
        torch.manual_seed(seed)
        model.resize_token_embeddings(68, mean_resizing=False)
        return model

    model = wrapped(make(1), target_modules=["q"])
    quantlora.save_adapter(model, tmp_path / "ad")
    again = quantlora.load_adapter(make(2), tmp_path / "ad")
    with torch.no_grad():
        one, other = (m(input_ids=TOKENS, labels=TOKENS).logits for m in (again, model))
    assert torch.equal(one, other)


def test_a_model_that_names_no_embeddings_says_so(tmp_path):
    model = quantlora.wrap(torch.nn.Sequential(torch.nn.Linear(4, 4)), r=2)
    with pytest.raises(AdapterError, match="does not say which its embeddings are"):
        quantlora.save_adapter(model, tmp_path, save_embedding_layers=True)
