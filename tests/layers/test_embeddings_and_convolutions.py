"""LoRA on embeddings and convolutions: as PEFT has it, and merged like any layer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

import quantlora
from quantlora.errors import BackendError, ConfigError, MergeError
from quantlora.layers.convolution import LoraConv
from quantlora.layers.embedding import LoraEmbedding
from quantlora.testing.models import tiny_llama
from tests.tools.peft_oracle import check_gradients, check_logits, pair, relative

EMBEDDING = {"target_modules": ["embed_tokens", "q_proj"], "r": 4, "lora_alpha": 6}


def convolution(dims: int, **settings: Any) -> nn.Sequential:
    torch.manual_seed(0)
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    return nn.Sequential(kind(4, 6, 3, **settings), nn.ReLU())


CONVOLUTIONS: dict[str, tuple[nn.Sequential, Tensor]] = {
    "1d": (convolution(1, padding=1), torch.randn(3, 4, 9)),
    "2d": (convolution(2, stride=2), torch.randn(3, 4, 8, 8)),
    "3d": (convolution(3, bias=False), torch.randn(3, 4, 5, 5, 5)),
    "pointwise": (nn.Sequential(nn.Conv2d(4, 6, 1)), torch.randn(3, 4, 8, 8)),
    "grouped": (convolution(2, groups=2), torch.randn(3, 4, 8, 8)),
}


@pytest.mark.parametrize("fields", [{}, {"use_rslora": True}])
def test_embeddings_agree_with_peft(fields: dict[str, Any], tmp_path: Path) -> None:
    both = pair(tmp_path, {"default": {**EMBEDDING, **fields}})
    assert isinstance(both.ours.get_submodule("model.embed_tokens"), LoraEmbedding)
    check_logits(both)
    check_gradients(both, "default")


SCALED: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": ["0"], "init_lora_weights": False},
    "dora": {"target_modules": ["0"], "init_lora_weights": False, "use_dora": True},
    "tokens": {"target_modules": ["1"], "trainable_token_indices": {"0": [7, 3]}},
}


@pytest.mark.parametrize("kind", SCALED)
def test_gradients_are_scaled_by_frequency_as_in_peft(kind: str, tmp_path: Path) -> None:
    base = nn.Sequential(nn.Embedding(9, 4, scale_grad_by_freq=True), nn.Linear(4, 4))
    theirs = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(r=2, **SCALED[kind]))
    theirs.save_pretrained(str(tmp_path))
    ours = quantlora.load_adapter(copy.deepcopy(base), tmp_path, is_trainable=True)
    found = []
    for model in (ours, theirs):
        model(torch.tensor([[3, 3, 0], [7, 8, 3]])).square().sum().backward()
        grads = {n.removeprefix("base_model.model."): p.grad for n, p in model.named_parameters()}
        found.append({n: g for n, g in grads.items() if g is not None and n.startswith("0.")})
    mine, wanted = ([*one.values()] for one in found)
    assert len(mine) == len(wanted) > 0
    assert all(relative(a, b) <= 1e-5 for a, b in zip(mine, wanted, strict=True))


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("fields", [{}, {"lora_bias": True}])
def test_convolutions_agree_with_peft(kind: str, fields: dict[str, Any], tmp_path: Path) -> None:
    base, x = CONVOLUTIONS[kind]
    config = peft.LoraConfig(target_modules=["0"], r=2, init_lora_weights=False, **fields)
    theirs = peft.get_peft_model(copy.deepcopy(base), config)
    theirs.save_pretrained(str(tmp_path))
    ours = quantlora.load_adapter(copy.deepcopy(base), tmp_path)
    assert isinstance(ours[0], LoraConv)
    assert relative(ours(x), theirs(x)) <= 1e-5


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_peft_loads_our_convolutions(kind: str, tmp_path: Path) -> None:
    base, x = CONVOLUTIONS[kind]
    model = copy.deepcopy(base)
    ours = quantlora.wrap(model, r=2, target_modules=["0"], init_lora_weights=False)
    quantlora.save_adapter(ours, tmp_path)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path))
    assert relative(ours(x), theirs(x)) <= 1e-5


def test_peft_loads_our_embedding(tmp_path: Path) -> None:
    ids = torch.arange(12)[None]
    ours = quantlora.wrap(tiny_llama(), init_lora_weights=False, **EMBEDDING)
    quantlora.save_adapter(ours, tmp_path)
    theirs = peft.PeftModel.from_pretrained(tiny_llama(), str(tmp_path))
    assert relative(ours(ids).logits, theirs(ids).logits) <= 1e-5


def test_an_embedding_trained_with_another_vocabulary_is_named(tmp_path: Path) -> None:
    """PEFT saves the base's embedding with an adapter on it; the model must have its size."""
    pair(tmp_path, {"default": EMBEDDING})
    with pytest.raises(quantlora.AdapterFileError, match=r"resize_token_embeddings\(82\)"):
        quantlora.load_adapter(tiny_llama(vocab_size=90), tmp_path)


def test_an_embedding_trained_with_other_values_is_named(tmp_path: Path) -> None:
    """PEFT puts the file's in place of the base's, and so do we, but we say so."""
    pair(tmp_path, {"default": EMBEDDING})
    with pytest.warns(quantlora.AdapterWarning, match="in place of its own: model.embed_tokens"):
        quantlora.load_adapter(tiny_llama(seed=1), tmp_path)


def test_dilation_is_that_of_the_layer() -> None:
    """PEFT leaves it out of A, so that shapes differ and its forward fails."""
    base, x = convolution(2, dilation=2, padding=2), torch.randn(3, 4, 8, 8)
    model = quantlora.wrap(base, r=2, target_modules=["0"], init_lora_weights=False)
    wanted = model(x)
    quantlora.merge_and_unload(model)
    assert relative(model(x), wanted) <= 1e-5


@pytest.mark.parametrize("kind", ["1d", "2d", "3d", "pointwise"])
def test_a_convolution_is_merged_and_unmerged(kind: str) -> None:
    base, x = CONVOLUTIONS[kind]
    model = quantlora.wrap(
        copy.deepcopy(base), r=2, target_modules=["0"], init_lora_weights=False, lora_bias=True
    )
    model[0].lora_B["default"].bias.data.normal_()
    before = model(x)
    quantlora.merge(model)
    assert relative(model(x), before) <= 1e-5
    quantlora.unmerge(model)
    assert torch.equal(model(x), before)


def test_an_embedding_is_merged_and_unmerged() -> None:
    ids = torch.arange(24).reshape(2, 12)
    model = quantlora.wrap(tiny_llama(), init_lora_weights=False, **EMBEDDING)
    before = model(ids).logits
    quantlora.merge(model)
    assert relative(model(ids).logits, before) <= 1e-5
    quantlora.unmerge(model)
    assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("kind", ["1d", "2d"])
def test_convolutions_take_mixed_batches(kind: str) -> None:
    base, x = CONVOLUTIONS[kind]
    model = copy.deepcopy(base)
    wanted = [model(x)[1:2]]
    quantlora.wrap(model, r=2, target_modules=["0"], init_lora_weights=False)
    wanted = [model(x)[0:1], *wanted, model(x)[2:3]]
    with quantlora.mixed_batch(model, ["default", "__base__", "default"]):
        assert relative(model(x), torch.cat(wanted)) <= 1e-6


def test_embeddings_take_mixed_batches(tmp_path: Path) -> None:
    names = ["default", "__base__", "second", "second", "default"]
    both = pair(tmp_path, {"default": EMBEDDING, "second": {**EMBEDDING, "r": 2}})
    both.theirs.eval()
    both.ours.eval()
    ids = torch.arange(60).reshape(5, 12)
    with quantlora.mixed_batch(both.ours, names):
        logits = both.ours(ids).logits
    assert relative(logits, both.theirs(ids, adapter_names=names).logits) <= 1e-5


def test_a_scaled_embedding_scales_the_update_too() -> None:
    """Gemma's: the scale is applied behind the weight, so a merge must give the same."""
    from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

    scaled = Gemma3TextScaledWordEmbedding(30, 8, padding_idx=0, embed_scale=3.0)
    model = nn.Sequential(scaled)
    quantlora.wrap(model, r=2, target_modules=["0"], init_lora_weights=False)
    ids = torch.arange(1, 20)[None]
    before = model(ids)
    quantlora.merge_and_unload(model)
    assert type(model[0]) is Gemma3TextScaledWordEmbedding
    assert relative(model(ids), before) <= 1e-5


def test_all_linear_leaves_embeddings_and_convolutions_alone() -> None:
    model = nn.Sequential(nn.Embedding(10, 8), nn.Conv1d(8, 8, 1), nn.Linear(8, 8))
    quantlora.wrap(model)
    assert [path for path, _ in quantlora.lora_layers(model)] == ["2"]


def test_an_embedding_starts_at_the_base_model() -> None:
    ids = torch.arange(12)[None]
    model = tiny_llama()
    before = model(ids).logits
    quantlora.wrap(model, **EMBEDDING)
    assert torch.equal(model(ids).logits, before)
    assert model.get_submodule("model.embed_tokens").lora_embedding_B["default"].abs().sum() > 0


def test_an_adapter_on_a_tied_embedding_leaves_the_head() -> None:
    model = tiny_llama(tie_word_embeddings=True)
    head = model.lm_head.weight.clone()
    quantlora.wrap(model, init_lora_weights=False, **EMBEDDING)
    with pytest.warns(quantlora.AdapterWarning, match="tied"):
        quantlora.merge_and_unload(model)
    assert torch.equal(model.lm_head.weight, head)
    assert not torch.equal(model.get_input_embeddings().weight, head)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"target_modules": ["embed_tokens"], "lora_bias": True}, ConfigError, "no bias"),
        (
            {"target_modules": ["embed_tokens"], "backend": "normalfloat"},
            BackendError,
            "no linear layer",
        ),
    ],
)
def test_what_an_embedding_cannot_have_is_an_error(
    fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        quantlora.wrap(tiny_llama(), **fields)


def test_a_grouped_convolution_cannot_be_merged() -> None:
    model = copy.deepcopy(CONVOLUTIONS["grouped"][0])
    quantlora.wrap(model, r=2, target_modules=["0"])
    with pytest.raises(MergeError, match="groups=2"):
        quantlora.merge(model)


@pytest.mark.parametrize("kind", ["cat", "svd", "linear"])
def test_convolutions_and_embeddings_are_combined(kind: str) -> None:
    model = nn.Sequential(nn.Embedding(30, 6), nn.Conv1d(5, 4, 3))
    for name in ("default", "second"):
        fields = {"target_modules": ["0", "1"], "r": 2, "init_lora_weights": False}
        quantlora.wrap(model, adapter_name=name, **fields)
    ids = torch.arange(20).reshape(4, 5)
    rank = {"svd_rank": 4} if kind == "svd" else {}
    quantlora.add_weighted_adapter(model, ["default", "second"], [1, 1], "sum", kind, **rank)
    combined = model(ids)
    quantlora.set_adapter(model, ["default", "second"])
    assert kind == "linear" or relative(combined, model(ids)) <= 1e-5
