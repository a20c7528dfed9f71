"""Forms of PEFT's files that say the usual in another way: they load, with PEFT's outputs."""

from __future__ import annotations

import json

import pytest
import torch

import quantlora


@pytest.fixture
def saved(make_base, tmp_path, peft, randomize):
    """Saves PEFT's adapter with given settings, then changes fields of its config."""

    def save(changes=None, tie=False, **fields):
        base = make_base(tie_word_embeddings=tie)
        theirs = randomize(peft.get_peft_model(base, peft.LoraConfig(r=4, **fields)))
        theirs.save_pretrained(tmp_path)
        file = tmp_path / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | (changes or {})))
        return theirs

    return save


def close(a, b):
    return float((a - b).norm() / b.norm()) < 1e-5


NULL = {"use_dora": None, "use_rslora": None, "target_modules": None, "bias": None, "r": 4}


@pytest.mark.parametrize("field", NULL)
def test_a_null_field_is_the_default(saved, make_base, logits, tmp_path, field):
    theirs = saved({field: NULL[field]}, target_modules=["q_proj", "up_proj"])
    assert close(logits(quantlora.load_adapter(make_base(), tmp_path)), logits(theirs))


@pytest.mark.parametrize("name", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_that_matches_nothing_has_no_effect(saved, make_base, logits, tmp_path, name):
    theirs = saved(target_modules=["q_proj"], **{name: {"elsewhere": 2}})
    assert close(logits(quantlora.load_adapter(make_base(), tmp_path)), logits(theirs))


@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head"]])
@pytest.mark.filterwarnings("ignore")
def test_targets_that_are_tied_load(saved, make_base, logits, tmp_path, targets):
    theirs = saved(tie=True, target_modules=["q_proj", *targets])
    ours = quantlora.load_adapter(make_base(tie_word_embeddings=True), tmp_path)
    assert close(logits(ours), logits(theirs))


@pytest.mark.parametrize("name", ["Gaussian", "GAUSSIAN", "gaussian"])
def test_an_initializer_may_be_spelled_in_any_case(make_base, name):
    torch.manual_seed(0)
    model = quantlora.wrap(make_base(), r=4, target_modules=["q_proj"], init_lora_weights=name)
    values = torch.cat([p.detach().flatten() for n, p in model.named_parameters() if "lora_A" in n])
    assert values.std() == pytest.approx(1 / 4, rel=0.2)


def test_a_loaded_start_may_be_spelled_in_any_case(saved, make_base, tmp_path, recwarn):
    saved({"init_lora_weights": "Gaussian"}, target_modules=["q_proj"])
    quantlora.load_adapter(make_base(), tmp_path)
    assert not [one for one in recwarn if "changes the base" in str(one.message)]
