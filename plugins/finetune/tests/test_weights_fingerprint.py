"""The fingerprint of a model's weights: other weights, other fingerprint, packed or not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from quantlora_finetune.model.weights_fingerprint import weights_fingerprint

import quantlora
from quantlora.testing.models import tiny_llama

BACKENDS = ["float", "bitsandbytes_4bit", "bitsandbytes_8bit", "normalfloat", "torchao", "fp8"]


def model(backend: str, *, negated: bool = False) -> Any:
    """With one weight ``negated``, whose scales are the same then."""
    made = tiny_llama()
    if negated:
        made.model.layers[1].mlp.up_proj.weight.data.neg_()
    if backend != "float":
        quantizer = quantlora.registry().quantizers.get(backend)
        if quantizer is None or not all(need.check() for need in quantizer.requires):
            pytest.skip(f"{backend} is not installed")
        quantlora.quantize(made, backend=backend)
    return made


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.filterwarnings("ignore")
def test_other_weights_in_the_same_format_are_told(backend: str) -> None:
    found = weights_fingerprint(model(backend))
    assert weights_fingerprint(model(backend)) == found
    assert weights_fingerprint(model(backend, negated=True)) != found


@pytest.mark.parametrize("backend", ["float", "normalfloat"])
def test_the_dtype_that_a_model_is_loaded_in_makes_no_difference(backend: str) -> None:
    one = model(backend).bfloat16()
    found = weights_fingerprint(one)
    assert weights_fingerprint(one.float()) == found


def test_one_code_in_a_million_is_told() -> None:
    one = model("float")
    one.register_buffer("codes", torch.zeros(1_000_000, dtype=torch.uint8))
    found = weights_fingerprint(one)
    one.codes[777_777] = 1
    assert weights_fingerprint(one) != found
