"""``backend="gptq"`` on a float model: calibrated by GPTQModel, or rounded to nearest."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from quantlora import BackendError, registry, wrap
from quantlora.testing.models import tiny_llama, tiny_tokenizer

from .gptq_loading import load, needs_gptqmodel, needs_library, tokens

TEXTS = ["The quick brown fox jumps over the lazy dog, again and again. " * 4] * 16


def calibrated(model: nn.Module, **options: Any) -> nn.Module:
    options = {"calibration": TEXTS, "tokenizer": tiny_tokenizer(), **options}
    return wrap(model, backend="gptq", r=2, quantize_options=options)


def small() -> nn.Module:
    return tiny_llama(hidden_size=128, intermediate_size=256, num_hidden_layers=1)


@needs_gptqmodel
@pytest.mark.parametrize("bits", [pytest.param(3, marks=pytest.mark.slow), 4])
def test_one_call_quantizes_a_float_model_over_texts(bits: int) -> None:
    model, dense = small(), small()
    calibrated(model, bits=bits, group_size=32)
    layer = model.model.layers[0].mlp.up_proj
    assert layer.quantizer.describe(layer.base_layer)["bits"] == bits
    weight = dense.model.layers[0].mlp.up_proj.weight
    assert (layer.dequantize() - weight).norm() / weight.norm() < {3: 0.3, 4: 0.15}[bits]


@needs_gptqmodel
def test_the_saved_checkpoint_loads_as_the_model_that_was_wrapped(tmp_path) -> None:
    model = calibrated(small(), save_to=tmp_path)
    again = load(tmp_path)
    batch = {"input_ids": tokens()}
    assert torch.allclose(model(**batch).logits, again.eval()(**batch).logits, atol=2e-2)
    layer = again.model.layers[0].mlp.down_proj
    weight = model.model.layers[0].mlp.down_proj.dequantize()
    assert torch.equal(registry().match("", layer).dequantize(layer).to(weight.dtype), weight)


@needs_gptqmodel
def test_a_folder_with_files_is_refused_before_the_calibration(tmp_path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(BackendError, match=r"save_to=.* exists and is not an empty folder"):
        calibrated(small(), save_to=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


@needs_gptqmodel
def test_only_the_targets_are_quantized() -> None:
    model = small()
    options = {"calibration": TEXTS, "tokenizer": tiny_tokenizer()}
    wrap(model, backend="gptq", target_modules=["q_proj"], quantize_options=options)
    attention = model.model.layers[0].self_attn
    assert attention.q_proj.quantizer.name == "gptq"
    assert type(attention.k_proj) is nn.Linear


@needs_gptqmodel
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 5}, "bits=5"),
        ({"group_size": 48}, "does not divide its 128 inputs"),
        ({"tokenizer": None}, "needs tokenizer"),
        ({"calibration": []}, "needs calibration texts"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_and_the_model_kept(options, message) -> None:
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(BackendError, match=message):
        calibrated(model, **options)
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


@needs_library
def test_without_texts_the_weights_are_rounded_and_a_warning_says_so() -> None:
    with pytest.warns(UserWarning, match="without calibration texts"):
        model = wrap(small(), backend="gptq", quantize_options={"bits": 8})
    assert model.model.layers[0].mlp.up_proj.quantizer.name == "gptq"


@needs_library
def test_more_bits_are_closer() -> None:
    quantizer, linear = registry().quantizer("gptq"), nn.Linear(128, 64).requires_grad_(False)
    distances = [
        float((quantizer.dequantize(quantizer.quantize(linear, bits=b)) - linear.weight).norm())
        for b in (2, 3, 4, 8)
    ]
    assert all(more > less for more, less in pairwise(distances))


@needs_library
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_packing_what_the_grid_holds_loses_nothing(bits: int) -> None:
    """So merging an update that is zero changes no weight."""
    quantizer = registry().quantizer("gptq")
    layer = quantizer.quantize(nn.Linear(128, 64), bits=bits)
    exact = nn.Linear(128, 64)
    exact.weight.data = quantizer.dequantize(layer)
    again = quantizer.quantize(exact, like=layer)
    assert torch.equal(quantizer.dequantize(again), exact.weight)


@needs_library
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_an_update_of_whole_steps_moves_into_the_zero_points(bits: int) -> None:
    """Rounding codes again would clip those at the ends of the range."""
    quantizer = registry().quantizer("gptq")
    layer = quantizer.quantize(nn.Linear(128, 64), bits=bits, group_size=32)
    grid, wanted = quantizer.affine(layer), nn.Linear(128, 64)
    steps = torch.randint(-1, 2, grid.zeros.shape)
    wanted.weight.data = replace(grid, zeros=grid.zeros + steps).dequantize()
    merged = quantizer.quantize(wanted, like=layer)
    assert torch.equal(quantizer.dequantize(merged), wanted.weight)
