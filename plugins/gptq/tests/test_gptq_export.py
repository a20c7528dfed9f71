"""Merged models as files: in float, and packed as the checkpoint they came from."""

from __future__ import annotations

import json

import pytest
import torch
from quantlora_gptq.requires import library_of

import quantlora
from quantlora import registry, wrap

from . import gptq_loading
from .gptq_checkpoint import Recipe
from .gptq_loading import HAS_AUTO_GPTQ, needs_library, tokens

pytestmark = needs_library

UP = "model.layers.0.mlp.up_proj"
RECIPES = [Recipe(), Recipe(bits=8, sym=False), Recipe(bits=3, v2=not HAS_AUTO_GPTQ)]


def wrapped(model):
    torch.manual_seed(0)
    return wrap(model, r=4, lora_alpha=1, init_lora_weights=False)


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_a_float_export_computes_the_same_without_the_library(recipe, load, tmp_path) -> None:
    model = wrapped(load(recipe)).eval()
    report = quantlora.export_merged(model, tmp_path / "merged", torch.float32)
    assert report.check.logits < 1e-5
    assert "quantization_config" not in json.loads((tmp_path / "merged/config.json").read_text())


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_a_packed_export_is_the_merged_model_bit_for_bit(recipe, load, tmp_path) -> None:
    model = wrapped(load(recipe))
    quantlora.export_merged(model, tmp_path / "merged", mode="requantize")
    quantlora.merge_and_unload(model, mode="requantize")
    found = gptq_loading.load(tmp_path / "merged")
    layer, merged = found.get_submodule(UP), model.get_submodule(UP)
    assert library_of(layer) == library_of(merged)
    quantizer = registry().match(UP, layer)
    assert torch.equal(quantizer.dequantize(layer), quantizer.dequantize(merged))


def test_merging_changes_what_the_model_says_as_little_as_it_reports(load) -> None:
    model = wrapped(load(Recipe(bits=8))).eval()
    with torch.no_grad():
        before = model(input_ids=tokens()).logits
        report = quantlora.merge(model, mode="dequantize")
        after = model(input_ids=tokens()).logits
    assert max(one.loss for one in report.layers) < 1e-5
    assert torch.allclose(before, after, atol=1e-4)
