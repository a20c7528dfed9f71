"""Embeddings that compute which rows they look up."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BartConfig, BartModel

import quantlora


@pytest.mark.parametrize("fields", [{}, {"use_dora": True}], ids=str)
def test_positions_of_bart_are_adapted_at_the_rows_that_are_looked_up(fields: Any) -> None:
    torch.manual_seed(0)
    sizes = {"d_model": 32, "vocab_size": 50, "encoder_layers": 1, "decoder_layers": 1}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "dropout": 0.0}
    model = BartModel(BartConfig(**sizes, **heads, encoder_ffn_dim=32, decoder_ffn_dim=32)).eval()
    ids, targets = torch.randint(5, 49, (2, 6)), ["embed_positions"]
    plain = copy.deepcopy(model)
    quantlora.wrap(model, r=4, target_modules=targets, init_lora_weights=False, **fields)
    for side in ("encoder", "decoder"):
        weight = model.get_submodule(f"{side}.embed_positions").weight.detach()
        plain.get_submodule(f"{side}.embed_positions").weight.data.copy_(weight)
    wanted, found = plain(ids).last_hidden_state, model(ids).last_hidden_state
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


class Normed(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return torch.nn.functional.normalize(super().forward(input), dim=-1)


class Times7(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 7


@pytest.mark.parametrize("kind", [Normed, Times7])
def test_an_embedding_that_does_more_is_refused_by_name(kind: type[nn.Embedding]) -> None:
    model = quantlora.wrap(nn.Sequential(kind(9, 4)), r=2, target_modules=["0"])
    with pytest.raises(quantlora.LayerError, match=f"0: {kind.__name__} does more than look rows"):
        model(torch.arange(9))
