"""``trainable_token_indices``, ``ensure_weight_tying``: PEFT's outputs, and its files both ways."""

from __future__ import annotations

import warnings

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

import quantlora
from quantlora import AdapterError, ConfigError
from quantlora.testing.models import tiny_llama

TOKENS = torch.tensor([[1, 5, 9, 7, 30, 2], [9, 9, 1, 2, 3, 4]])
LIST = {"trainable_token_indices": [9, 1, 30]}
BOTH = {"trainable_token_indices": {"embed_tokens": [9, 1], "lm_head": [9, 1]}}
EACH = {"trainable_token_indices": {"embed_tokens": [9, 1], "lm_head": [2, 1]}}
HEAD = {"trainable_token_indices": {"lm_head": [2, 1]}}
TIE_LORA = {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}
TIE_HEAD = {"target_modules": ["q_proj", "lm_head"], "ensure_weight_tying": True}
TIE_REGEX = {"target_modules": r"(.*q_proj|lm_head)", "ensure_weight_tying": True}
TIE_COPY = {"modules_to_save": ["lm_head"], "ensure_weight_tying": True}
EVERY = {"target_modules": "all-linear", **LIST}
ALL = [LIST, EVERY, BOTH, EACH, HEAD, TIE_LORA, TIE_HEAD, TIE_REGEX, TIE_COPY]
IDS = ["list", "every", "both", "each", "head", "tie_lora", "tie_head", "tie_regex", "tie_copy"]
FOLLOWS = [LIST, BOTH, TIE_LORA, TIE_HEAD, TIE_COPY]


def base(tie=True):
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    return tiny_llama(**sizes, tie_word_embeddings=tie).eval()


def settings(fields):
    return {"r": 4, "target_modules": ["q_proj"], **fields}


@torch.no_grad()
def trained(model, seed=1):
    """Other values for all that is trained, as training would give them."""
    torch.manual_seed(seed)
    for parameter in {id(p): p for p in model.parameters() if p.requires_grad}.values():
        parameter += 0.3 * torch.randn_like(parameter)
    return model


def wrapped(model, fields, seed=1, name="default"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return trained(quantlora.wrap(model, adapter_name=name, **settings(fields)), seed)


@torch.no_grad()
def logits(model, tokens=TOKENS, **options):
    return model.eval()(tokens, **options).logits


def close(a, b):
    return float((a - b).norm() / b.norm()) < 1e-5


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
tied = pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
every = pytest.mark.parametrize("fields", ALL, ids=IDS)
follows = pytest.mark.parametrize("fields", FOLLOWS, ids=["list", "both", "lora", "head", "copy"])


@tied
@every
def test_peft_s_file_computes_here_what_it_does_in_peft(tmp_path, fields, tie):
    peft = pytest.importorskip("peft")
    theirs = trained(peft.get_peft_model(base(tie), peft.LoraConfig(**settings(fields))))
    theirs.save_pretrained(tmp_path)
    ours = quantlora.load_adapter(base(tie), tmp_path)
    assert not close(logits(base(tie)), logits(theirs))
    assert close(logits(ours), logits(theirs))


@tied
@every
def test_our_file_computes_in_peft_what_it_does_here(tmp_path, fields, tie):
    peft = pytest.importorskip("peft")
    ours = wrapped(base(tie), fields)
    quantlora.save_adapter(ours, tmp_path)
    assert close(logits(peft.PeftModel.from_pretrained(base(tie), tmp_path)), logits(ours))
    assert torch.equal(logits(quantlora.load_adapter(base(tie), tmp_path)), logits(ours))


@tied
@every
def test_merged_and_unmerged_it_computes_the_same(fields, tie):
    model, plain = wrapped(base(tie), fields), logits(base(tie))
    want = logits(model)
    quantlora.merge(model)
    assert close(logits(model), want)
    quantlora.unmerge(model)
    assert torch.equal(logits(model), want)
    with quantlora.adapters_disabled(model):
        assert torch.equal(logits(model), plain)


@follows
def test_a_merged_model_is_tied_still(fields):
    model = wrapped(base(), fields)
    want = logits(model)
    quantlora.merge_and_unload(model)
    assert type(model.lm_head) is nn.Linear
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.tie_word_embeddings
    assert close(logits(model), want)


@follows
def test_unloaded_it_is_the_model_it_was(fields):
    model = quantlora.unload(wrapped(base(), fields))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(logits(model), logits(base()))


@tied
@every
def test_its_gradients_are_those_of_the_merged_weights(fields, tie):
    """The loss's slope along the parameters, against differences in float64."""
    model = wrapped(base(tie).double(), fields)
    parameters = [p for p in model.parameters() if p.requires_grad]

    def loss():
        return model(TOKENS).logits.square().mean()

    loss().backward()
    torch.manual_seed(3)
    ways = [torch.randn_like(p) for p in parameters]
    slope = sum(float((p.grad * way).sum()) for p, way in zip(parameters, ways, strict=True))
    losses = []
    for step in (1e-3, -2e-3):
        with torch.no_grad():
            for parameter, way in zip(parameters, ways, strict=True):
                parameter += step * way
            losses.append(float(loss()))
    assert slope == pytest.approx((losses[0] - losses[1]) / 2e-3, rel=1e-2)  # the norms are float32


@every
def test_a_mixed_batch_is_each_adapter_alone(fields):
    model = wrapped(wrapped(base(), fields, 1, "a"), fields, 2, "b")
    tokens, names = TOKENS.repeat(2, 1)[:3], ["b", "__base__", "a"]
    with quantlora.mixed_batch(model, names):
        got = logits(model, tokens)
    with quantlora.adapters_disabled(model):
        want = {"__base__": logits(model, tokens)}
    for name in "ab":
        quantlora.set_adapter(model, name)
        want[name] = logits(model, tokens)
    assert close(got, torch.stack([want[name][i] for i, name in enumerate(names)]))


def test_adapters_with_other_tokens_are_active_together():
    model = wrapped(base(), {"trainable_token_indices": [9]}, 1, "a")
    wrapped(model, {"trainable_token_indices": [1]}, 2, "b")
    quantlora.set_adapter(model, ["a", "b"])
    want = logits(model)
    quantlora.merge_and_unload(model)
    assert close(logits(model), want)


def test_adapters_with_the_same_token_are_not_active_together():
    model = wrapped(wrapped(base(), LIST, 1, "a"), {"trainable_token_indices": [9]}, 2, "b")
    with pytest.raises(AdapterError, match="a and b have each trained token 9"):
        quantlora.set_adapter(model, ["a", "b"])


@follows
def test_adapters_are_renamed_deleted_and_exported(tmp_path, fields):
    model = wrapped(wrapped(base(), fields, 1, "a"), fields, 2, "b")
    quantlora.set_adapter(model, "a")
    want = logits(model)
    quantlora.rename_adapter(model, "a", "c")
    quantlora.delete_adapter(model, "b")
    assert torch.equal(logits(model), want)
    quantlora.export_merged(model, tmp_path / "out")
    assert close(logits(type(model).from_pretrained(tmp_path / "out")), want)


def test_the_file_holds_the_rows_only(tmp_path):
    quantlora.save_adapter(wrapped(base(), LIST), tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    key = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    assert {k: tuple(t.shape) for k, t in tensors.items() if "lora" not in k} == {key: (3, 16)}


def test_new_tokens_are_trained_and_come_back(tmp_path):
    base().save_pretrained(tmp_path / "base")
    peft = pytest.importorskip("peft")

    def resized(seed):
        model = type(base()).from_pretrained(tmp_path / "base")
        torch.manual_seed(seed)
        model.resize_token_embeddings(36, mean_resizing=False)
        return model

    model = wrapped(resized(1), {"trainable_token_indices": [33, 34]})
    quantlora.save_adapter(model, tmp_path / "ad")
    tokens = TOKENS + 5
    want = logits(model, tokens)
    assert close(logits(quantlora.load_adapter(resized(2), tmp_path / "ad"), tokens), want)
    theirs = peft.PeftModel.from_pretrained(resized(3), tmp_path / "ad")
    assert close(logits(theirs, tokens), want)
    theirs.save_pretrained(tmp_path / "theirs")
    assert close(logits(quantlora.load_adapter(resized(4), tmp_path / "theirs"), tokens), want)


def test_tied_adapters_that_peft_has_let_drift_apart_are_two(tmp_path):
    peft = pytest.importorskip("peft")
    model = base().bfloat16()
    theirs = trained(peft.get_peft_model(model, peft.LoraConfig(**settings(TIE_LORA))))
    theirs.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(base(), tmp_path)
    with pytest.warns(UserWarning, match="another adapter for lm_head than for"):
        ours = quantlora.load_adapter(base(), tmp_path)
    difference = (logits(ours) - logits(again)).norm() / logits(again).norm()
    assert difference < 1e-5 or difference < 0.5 * (logits(base()) - logits(again)).norm()


@pytest.mark.parametrize(
    "fields", [LIST, {**TIE_LORA, "target_modules": ["query", "word_embeddings"]}]
)
def test_a_tied_head_keeps_its_bias(fields):
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    model = BertForMaskedLM(BertConfig(**sizes, num_attention_heads=2)).eval()
    with torch.no_grad():
        model.cls.predictions.decoder.bias.normal_()
    wrapped(model, {"target_modules": ["query"], **fields})
    want = logits(model)
    quantlora.merge_and_unload(model)
    assert close(logits(model), want)


def test_tied_embeddings_of_an_encoder_and_a_decoder_follow(tmp_path):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 32,
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 16,
        "num_layers": 1,
        "num_heads": 2,
    }
    plain = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)).eval()
    plain.save_pretrained(tmp_path / "base")
    make = lambda: T5ForConditionalGeneration.from_pretrained(tmp_path / "base")  # noqa: E731
    config = peft.LoraConfig(r=4, target_modules=["q"], **LIST)
    theirs = trained(peft.get_peft_model(make(), config))
    theirs.save_pretrained(tmp_path)
    ours = quantlora.load_adapter(make(), tmp_path)
    assert close(logits(ours, labels=TOKENS), logits(theirs, labels=TOKENS))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"trainable_token_indices": [40]}, "names token 40, and there are 32"),
        ({"trainable_token_indices": [-1]}, "names token -1"),
        ({"trainable_token_indices": [1, 1]}, "each token once"),
        ({"trainable_token_indices": {"nowhere": [1]}}, "0 of that name"),
        ({"trainable_token_indices": {"input_layernorm": [1]}}, "this is a LlamaRMSNorm"),
        ({**EACH, "ensure_weight_tying": True}, "names other tokens for lm_head"),
    ],
)
def test_tokens_that_cannot_be_are_named(fields, text):
    model = base()
    with pytest.raises(ConfigError, match=text):
        quantlora.wrap(model, **settings(fields))
    assert torch.equal(logits(model), logits(base()))


@pytest.mark.parametrize(
    "fields",
    [
        {**LIST, "target_modules": ["embed_tokens"]},
        {**LIST, "target_modules": ["lm_head"]},
        {**LIST, "modules_to_save": ["embed_tokens"]},
        {**LIST, "modules_to_save": ["lm_head"]},
    ],
)
def test_a_layer_has_tokens_or_another_adapter(fields):
    with pytest.raises(AdapterError, match="leave it out of target_modules"):
        quantlora.wrap(base(), **settings(fields))


def test_adapters_that_are_tied_and_not_tied_do_not_share_a_layer():
    model = wrapped(base(), TIE_LORA, 1, "a")
    with pytest.raises(AdapterError, match="ensure_weight_tying is not the same for b and a"):
        quantlora.wrap(model, adapter_name="b", r=2, target_modules=["embed_tokens"])
    with pytest.raises(quantlora.QuantloraError):
        quantlora.wrap(model, adapter_name="b", r=2, target_modules=["lm_head"])


def test_tying_without_anything_tied_is_told():
    with pytest.warns(UserWarning, match="ensure_weight_tying is set, and has no effect"):
        quantlora.wrap(base(tie=False), **settings(TIE_LORA))


@follows
def test_hooks_of_a_tied_head_run_and_come_back(fields):
    model, seen = base(), []
    model.lm_head.register_forward_hook(lambda *_: seen.append(1))
    logits(wrapped(model, fields))
    assert len(seen) == 1
    logits(quantlora.unload(model))
    assert len(seen) == 2


@follows
def test_a_tied_head_with_a_forward_of_its_own_is_refused(fields):
    model = base()
    plain = model.lm_head.forward
    model.lm_head.forward = lambda x: plain(x).clamp(-1, 1)
    with pytest.raises(AdapterError, match="cannot follow"):
        quantlora.wrap(model, **settings(fields))


@pytest.mark.parametrize("fields", FOLLOWS)
def test_a_tied_model_is_saved_after_its_embeddings_were_merged(fields, tmp_path):
    model = quantlora.wrap(base(), **settings(fields))
    with torch.no_grad():
        for parameter in filter(lambda one: one.requires_grad, model.parameters()):
            parameter.add_(0.1)
    wanted = model.eval()(TOKENS).logits
    quantlora.merge_and_unload(model).save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(TOKENS).logits, wanted, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("fields", [TIE_LORA, TIE_HEAD, TIE_REGEX], ids=["lora", "head", "regex"])
def test_peft_s_dora_on_tied_layers_is_an_adapter_for_each(tmp_path, fields):
    """PEFT's has one pair of factors and two magnitudes; its way back trains two."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(**settings(fields), use_dora=True)
    theirs = trained(peft.get_peft_model(base(), config))
    theirs.save_pretrained(tmp_path / "theirs")
    with pytest.warns(UserWarning, match="another adapter for lm_head than for model.embed_tokens"):
        ours = quantlora.load_adapter(base(), tmp_path / "theirs")
    assert close(logits(ours), logits(theirs))
    quantlora.save_adapter(ours, tmp_path / "ours")
    back = peft.PeftModel.from_pretrained(base(), tmp_path / "ours")
    assert close(logits(back), logits(theirs))


def test_dora_cannot_follow():
    with pytest.raises(AdapterError, match="DoRA has a magnitude for each output"):
        quantlora.wrap(base(), **settings(TIE_LORA), use_dora=True)
