"""What happens to a merged model happens to the base that `unmerge` puts back."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import quantlora
from quantlora.errors import MergeError

LAYERS: dict[str, Any] = {
    "linear": lambda: nn.Linear(64, 64),
    "conv": lambda: nn.Conv1d(4, 4, 3),
    "embedding": lambda: nn.Embedding(8, 4),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("change", [{"dtype": torch.float64}, {"device": "meta"}])
def test_the_base_is_where_the_model_is(kind: str, change: dict[str, Any]) -> None:
    model = quantlora.wrap(nn.Sequential(LAYERS[kind]()), target_modules=["0"], r=2)
    quantlora.merge(model)
    model.to(**change)
    quantlora.unmerge(model)
    tensor = model[0].base_layer.weight
    assert {"dtype": tensor.dtype, "device": tensor.device.type}.items() >= change.items()


@pytest.mark.parametrize("backend", ["normalfloat", "bitsandbytes_4bit", "bitsandbytes_8bit"])
def test_a_packed_base_moves_along(backend: str) -> None:
    plain = quantlora.wrap(nn.Sequential(nn.Linear(64, 64)), backend=backend, r=2)
    merged = copy.deepcopy(plain)
    quantlora.merge(merged)
    for model in (plain, merged):
        model.half()
    quantlora.unmerge(merged)
    found, wanted = (model[0].base_layer.state_dict() for model in (merged, plain))
    assert all(
        found[key].dtype == wanted[key].dtype for key in wanted if hasattr(wanted[key], "dtype")
    )


def test_a_trained_bias_leaves_the_models_own_in_the_new_dtype() -> None:
    model = quantlora.wrap(nn.Sequential(nn.Linear(8, 8)), r=2, bias="all").double()
    with quantlora.adapters_disabled(model):
        assert model[0].base_layer.bias.dtype == torch.float64


def test_merging_without_an_active_adapter_is_an_error() -> None:
    model = quantlora.wrap(nn.Sequential(nn.Linear(8, 8)), r=2)
    quantlora.delete_adapter(model, "default")
    for merge in (quantlora.merge, quantlora.merge_and_unload):
        with pytest.raises(MergeError, match="no adapter is active or named"):
            merge(model)
