"""Encoder-decoders whose embeddings are one tensor under several names, merged and saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import quantlora
from quantlora.errors import AdapterWarning, TargetError

IDS = torch.tensor([[1, 5, 6, 7]])


def bart() -> Any:
    torch.manual_seed(0)
    layers = {"encoder_layers": 1, "decoder_layers": 1, "d_model": 32, "vocab_size": 64}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    sizes = {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 16}
    config = transformers.BartConfig(**layers, **heads, **sizes)
    return transformers.BartForConditionalGeneration(config).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, decoder_input_ids=IDS).logits  # type: ignore[no-any-return]


def adapted(**fields: Any) -> Any:
    model = quantlora.wrap(bart(), r=4, init_lora_weights=False, **fields).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape))
    return model


def write(model: Any, folder: Path, exported: bool) -> None:
    if exported:
        quantlora.export_merged(model, folder)
    else:
        quantlora.merge_and_unload(model).save_pretrained(folder)


@pytest.mark.parametrize("exported", [True, False])
@pytest.mark.parametrize("saved", [None, ["lm_head"]])
def test_the_embeddings_that_stay_tied_to_each_other_are_in_the_file(
    saved: list[str] | None, exported: bool, tmp_path: Path
) -> None:
    model = adapted(target_modules=["q_proj" if saved else "lm_head"], modules_to_save=saved)
    expected = logits(model)
    with pytest.warns(AdapterWarning, match="one of two tied weights"):
        write(model, tmp_path / "merged", exported)
    again = transformers.BartForConditionalGeneration.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(again.eval()), expected)


@pytest.mark.parametrize("field", ["target_modules", "modules_to_save"])
def test_an_embedding_that_no_forward_calls_is_refused_with_the_ones_that_are(field: str) -> None:
    fields = {"target_modules": ["q_proj"], field: ["shared"]}
    with pytest.raises(TargetError, match="Name embed_tokens, or set ensure_weight_tying=True"):
        quantlora.wrap(bart(), r=4, **fields)
    model = bart()
    before = logits(model)
    quantlora.wrap(model, r=4, init_lora_weights=False, ensure_weight_tying=True, **fields)
    assert field == "modules_to_save" or not torch.equal(logits(model.eval()), before)
