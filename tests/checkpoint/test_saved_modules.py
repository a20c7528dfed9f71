"""modules_to_save: modules trained in full, saved with the adapter, in PEFT's files."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

import quantlora
from quantlora import AdapterError, AdapterFileError, TargetError

FIELDS = {"r": 4, "target_modules": ["q_proj", "v_proj"], "modules_to_save": ["norm", "lm_head"]}
TOKENS = torch.arange(12)[None] * 5 % 64


@torch.no_grad()
def train(model, seed=1):
    """Changes all that is trained, as training would."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def relative_difference(a, b):
    return float((a - b).norm() / b.norm())


@pytest.fixture
def trained(make_base):
    return train(quantlora.wrap(make_base(), **FIELDS))


def test_copies_are_trained_under_peft_s_names_and_originals_are_not(trained):
    names = {name for name, p in trained.named_parameters() if p.requires_grad}
    assert "lm_head.modules_to_save.default.weight" in names
    assert "model.layers.0.input_layernorm.modules_to_save.default.weight" in names
    assert not any("original_module" in name for name in names)


def test_gradients_reach_the_copies(trained):
    trained(TOKENS, labels=TOKENS).loss.backward()
    missing = [n for n, p in trained.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


def test_reloaded_copies_give_the_same_logits_bit_for_bit(trained, make_base, logits, tmp_path):
    quantlora.save_adapter(trained, tmp_path)
    again = quantlora.load_adapter(make_base(), tmp_path)
    assert torch.equal(logits(again), logits(trained))


def test_peft_reads_our_copies(trained, make_base, logits, tmp_path, peft):
    quantlora.save_adapter(trained, tmp_path)
    theirs = peft.PeftModel.from_pretrained(make_base(), tmp_path)
    assert relative_difference(logits(theirs), logits(trained)) < 1e-5


def test_we_read_peft_s_copies(make_base, logits, tmp_path, peft):
    theirs = train(peft.get_peft_model(make_base(), peft.LoraConfig(**FIELDS)))
    theirs.save_pretrained(tmp_path)
    ours = quantlora.load_adapter(make_base(), tmp_path)
    assert relative_difference(logits(ours), logits(theirs)) < 1e-5


def test_a_module_with_whole_numbers_is_saved_and_loaded(tmp_path, peft):
    def base():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

    model = quantlora.wrap(base(), r=2, target_modules=["0"], modules_to_save=["1"])
    x = torch.randn(9, 4)
    model(x)  # counts a batch
    quantlora.save_adapter(model.eval(), tmp_path)
    again = quantlora.load_adapter(base(), tmp_path).eval()
    theirs = peft.PeftModel.from_pretrained(base(), tmp_path).eval()
    assert torch.equal(again(x), model(x))
    assert torch.allclose(theirs(x), model(x))
    assert again[1].chosen.num_batches_tracked == 1


def test_new_head_of_a_classifier_is_trained_and_saved_unasked(logits, tmp_path, peft):
    def base():
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
        config = BertConfig(vocab_size=64, num_attention_heads=4, num_labels=3, **sizes)
        return BertForSequenceClassification(config).eval()

    model = quantlora.wrap(base(), r=2, target_modules=["query"], task_type="SEQ_CLS")
    train(model)
    quantlora.save_adapter(model, tmp_path)
    for again in (
        quantlora.load_adapter(base(), tmp_path),
        peft.PeftModel.from_pretrained(base(), tmp_path),
    ):
        assert relative_difference(logits(again), logits(model)) < 1e-5


def test_output_depends_on_the_active_adapter_alone(trained, make_base, logits):
    with_first = logits(trained)
    quantlora.wrap(trained, r=2, target_modules=["q_proj"], adapter_name="plain")
    quantlora.set_adapter(trained, "plain")
    assert torch.equal(logits(trained), logits(make_base()))
    quantlora.set_adapter(trained, ["default", "plain"])
    assert torch.equal(logits(trained), with_first)
    quantlora.disable_adapters(trained)
    assert torch.equal(logits(trained), logits(make_base()))


def test_two_adapters_that_train_one_module_cannot_be_active_together(trained):
    quantlora.wrap(trained, adapter_name="second", **FIELDS)
    with pytest.raises(AdapterError, match="have each trained this module in full"):
        quantlora.set_adapter(trained, ["default", "second"])
    assert quantlora.active_adapters(trained) == ["second"]


def test_mixed_batch_takes_each_sample_s_own_copy(trained, logits):
    quantlora.wrap(trained, adapter_name="second", **FIELDS)
    train(trained, seed=2)
    wanted = {"__base__": None, "default": None, "second": None}
    for name in ("default", "second"):
        quantlora.set_adapter(trained, name)
        wanted[name] = logits(trained)
    with quantlora.adapters_disabled(trained):
        wanted["__base__"] = logits(trained)
    names = ["second", "__base__", "default"]
    with quantlora.mixed_batch(trained, names), torch.no_grad():
        mixed = trained(TOKENS.expand(3, -1)).logits
    for row, name in zip(mixed, names, strict=True):
        assert relative_difference(row, wanted[name][0]) < 1e-5


def test_merge_and_unload_keeps_the_trained_copy(trained, logits):
    before = logits(trained)
    quantlora.merge_and_unload(trained)
    assert type(trained.lm_head) is nn.Linear
    assert relative_difference(logits(trained), before) < 1e-5


def test_merged_copy_cannot_be_dropped_until_unmerged(trained, make_base, logits):
    quantlora.merge(trained)
    with pytest.raises(AdapterError, match="merged"):
        quantlora.disable_adapters(trained)
    quantlora.unmerge(trained)
    quantlora.unload(trained)
    assert torch.equal(logits(trained), logits(make_base()))


def test_renamed_and_deleted_adapters_take_their_copies_along(trained, make_base, logits):
    before = logits(trained)
    quantlora.rename_adapter(trained, "default", "renamed")
    assert torch.equal(logits(trained), before)
    quantlora.delete_adapter(trained, "renamed")
    assert torch.equal(logits(trained), logits(make_base()))


def test_copy_of_the_model_has_copies_of_its_own(trained, logits):
    before = logits(trained)
    train(copy.deepcopy(trained), seed=3)
    assert torch.equal(logits(trained), before)


def test_module_answers_for_the_one_that_counts(trained):
    assert trained.lm_head.out_features == 64
    assert trained.get_output_embeddings().weight is trained.lm_head.chosen.weight


def test_name_that_matches_nothing_is_an_error_with_near_names(make_base):
    with pytest.raises(TargetError, match="lm_head"):
        quantlora.wrap(make_base(), r=2, modules_to_save=["lm_haed"])


def test_module_with_lora_layers_cannot_be_trained_in_full(trained):
    with pytest.raises(AdapterError, match="another adapter has LoRA layers here"):
        quantlora.wrap(
            trained, target_modules=["up_proj"], modules_to_save=["self_attn"], adapter_name="b"
        )


def test_failing_load_leaves_no_copies_behind(trained, make_base, logits, tmp_path):
    quantlora.save_adapter(trained, tmp_path)
    other = make_base(num_hidden_layers=3)
    before = logits(other)
    with pytest.raises(AdapterFileError):
        quantlora.load_adapter(other, tmp_path)
    assert torch.equal(logits(other), before)
    assert not any("modules_to_save" in name for name, _ in other.named_modules())


def test_missing_copy_in_the_file_is_named(trained, make_base, tmp_path):
    from safetensors.torch import load_file, save_file

    quantlora.save_adapter(trained, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    del tensors["base_model.model.lm_head.weight"]
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterFileError, match=r"lacks those of 1 targeted layers, lm_head"):
        quantlora.load_adapter(make_base(), tmp_path)


def test_vllm_refuses_modules_trained_in_full(trained, tmp_path):
    quantlora.save_adapter(trained, tmp_path)
    assert "modules_to_save" in quantlora.check_vllm(tmp_path)[0]


def test_embeddings_targeted_in_peft_load_though_the_file_repeats_the_base(
    make_base, logits, tmp_path, peft, randomize
):
    config = peft.LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"])
    theirs = randomize(peft.get_peft_model(make_base(), config))
    theirs.save_pretrained(tmp_path)
    ours = quantlora.load_adapter(make_base(), tmp_path)
    assert relative_difference(logits(ours), logits(theirs)) < 1e-5


@pytest.fixture
def packed_head(make_base):
    """A model whose output embeddings are quantized."""
    model = make_base()
    model.lm_head = quantlora.registry().quantizer("normalfloat").quantize(model.lm_head)
    return model


def test_quantized_module_is_trained_as_a_float_one_that_starts_at_its_weight(packed_head, logits):
    before = logits(packed_head)
    quantlora.wrap(packed_head, r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    assert packed_head.lm_head.modules_to_save["default"].weight.requires_grad
    assert relative_difference(logits(packed_head), before) < 1e-5


def test_module_that_holds_quantized_layers_cannot_be_trained_in_full(packed_head):
    packed_head.tail = nn.Sequential(packed_head.lm_head)
    with pytest.raises(quantlora.LayerError, match="tail: it holds quantized layers"):
        quantlora.wrap(packed_head, r=2, target_modules=["q_proj"], modules_to_save=["tail"])


class Keyword(nn.Module):
    """Calls its head by keyword, with a second argument, and takes two outputs."""

    def __init__(self):
        super().__init__()
        self.lin, self.head = nn.Linear(8, 8), Pair()
        self.parts = nn.ModuleList([nn.Linear(8, 8)])

    def forward(self, x):
        return self.head(input=self.lin(x), mask=torch.arange(len(x))[:, None])["out"][0]


class Pair(nn.Linear):
    def __init__(self):
        super().__init__(8, 3)

    def forward(self, input, mask):
        return {"out": (super().forward(input) * mask, mask)}


@pytest.fixture
def called_by_keyword():
    torch.manual_seed(0)
    model, fields = Keyword(), {"r": 2, "target_modules": ["lin"], "modules_to_save": ["head"]}
    for seed, name in enumerate("ab"):
        train(quantlora.wrap(model, adapter_name=name, **fields), seed)
    return model


def test_a_module_called_by_keywords_and_with_several_outputs_is_trained(called_by_keyword):
    called_by_keyword(torch.randn(4, 8)).sum().backward()
    assert called_by_keyword.head.modules_to_save["b"].weight.grad.abs().max() > 0


def test_a_mixed_batch_takes_each_output_of_each_sample_from_its_adapter(called_by_keyword):
    model, x, names = called_by_keyword, torch.randn(4, 8), ["a", "__base__", "b", "a"]
    with quantlora.mixed_batch(model, names):
        got = model(x)
    with quantlora.adapters_disabled(model):
        want = {"__base__": model(x)}
    for name in "ab":
        quantlora.set_adapter(model, name)
        want[name] = model(x)
    assert torch.allclose(got, torch.stack([want[n][i] for i, n in enumerate(names)]), atol=1e-6)


class Summed(nn.Linear):
    def forward(self, x, scale):
        y = super().forward(x) * scale
        return y, y.sum()


def test_an_output_that_is_not_by_sample_is_refused_in_a_mixed_batch():
    head = Summed(8, 3)
    model = nn.ModuleDict({"lin": nn.Linear(8, 8), "head": head})
    model.forward = lambda x: model["head"](model["lin"](x), 2.0)
    quantlora.wrap(model, r=2, target_modules=["lin"], modules_to_save=["head"])
    train(model)
    message = "head: an output .* is not by sample"
    shared = quantlora.mixed_batch(model, ["default", "__base__"])
    with shared, pytest.raises(AdapterError, match=message):
        model(torch.randn(2, 8))


@pytest.mark.parametrize("name", ["parts", "table"])
def test_a_list_of_modules_is_refused_when_it_is_named(name):
    model = Keyword()
    model.table = nn.ModuleDict({"x": nn.Linear(8, 8)})
    with pytest.raises(TargetError, match=f"{name}: modules_to_save cannot have a Module"):
        quantlora.wrap(model, r=2, target_modules=["lin"], modules_to_save=[name])
    assert model.lin.weight.requires_grad
