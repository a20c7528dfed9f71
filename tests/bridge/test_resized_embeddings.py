"""Transformers' ``resize_token_embeddings`` and ``tie_weights`` on a wrapped model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import quantlora
from quantlora.errors import AdapterError
from quantlora.testing.models import tiny_llama
from tests.tools.peft_oracle import IDS

ADAPTED: list[dict[str, Any]] = [
    {"target_modules": ["q_proj", "lm_head"]},
    {"target_modules": ["q_proj", "embed_tokens"]},
    {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    {"target_modules": ["q_proj"], "trainable_token_indices": [3]},
]
pytestmark = pytest.mark.filterwarnings("ignore")
adapted = pytest.mark.parametrize("fields", ADAPTED)
tied = pytest.mark.parametrize("tie", [True, False])


def wrapped(fields: dict[str, Any], tie: bool) -> Any:
    model = tiny_llama(tie_word_embeddings=tie)
    return quantlora.wrap(model, r=2, init_lora_weights=False, **fields).eval()


@tied
@adapted
def test_adapted_embeddings_are_not_resized_by_half(fields: dict[str, Any], tie: bool) -> None:
    model = wrapped(fields, tie)
    before, size = model(IDS).logits, model.config.vocab_size
    with pytest.raises(AdapterError, match="before wrap or load_adapter"):
        model.resize_token_embeddings(size + 6)
    assert torch.equal(model(IDS).logits, before)
    assert model.config.vocab_size == size


@tied
@adapted
def test_tying_again_changes_nothing(fields: dict[str, Any], tie: bool) -> None:
    model = wrapped(fields, tie)
    before = model(IDS).logits
    model.tie_weights()
    model.resize_token_embeddings(model.config.vocab_size)
    assert torch.equal(model(IDS).logits, before)


def test_embeddings_without_an_adapter_are_resized() -> None:
    model = wrapped({"target_modules": ["q_proj"]}, tie=True)
    size = model.config.vocab_size
    model.resize_token_embeddings(size + 6)
    assert model(IDS).logits.shape[-1] == size + 6
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_merged_and_unloaded_they_are_resized() -> None:
    model = quantlora.merge_and_unload(wrapped(ADAPTED[1], tie=False))
    model.resize_token_embeddings(model.config.vocab_size + 6)
    assert model(IDS).logits.shape[-1] == model.config.vocab_size
