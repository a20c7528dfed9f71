"""The state dict of a merged model is for merged models."""

from __future__ import annotations

import copy

import pytest
import torch

import quantlora
from quantlora.errors import AdapterError


@pytest.mark.parametrize("fields", [{}, {"modules_to_save": ["up_proj"]}])
@pytest.mark.parametrize("merged_first", [True, False])
def test_a_state_dict_is_refused_where_other_adapters_are_merged(
    wrapped, merged_first, fields
) -> None:
    model = wrapped(target_modules=["q_proj"], **fields)
    other = copy.deepcopy(model)
    quantlora.merge(model if merged_first else other)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(AdapterError, match="count twice or not at all"):
        other.load_state_dict(model.state_dict())
    after = other.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_state_dict_goes_where_the_same_is_merged(wrapped, x) -> None:
    model = wrapped()
    other = copy.deepcopy(model)
    quantlora.merge(model)
    quantlora.merge(other)
    other.load_state_dict(model.state_dict())
    other.load_state_dict(dict(model.state_dict()))  # a plain one, as from a safetensors file
    assert torch.equal(other(x), model(x))


@pytest.mark.parametrize("backend", ["auto", "normalfloat"])
def test_a_plain_mapping_from_before_the_merge_is_refused(wrapped, backend) -> None:
    model = wrapped(target_modules=["q_proj"], backend=backend)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quantlora.merge(model)
    with pytest.raises(AdapterError, match="count twice or not at all"):
        model.load_state_dict(before)
    quantlora.unmerge(model)
    model.load_state_dict(before)


def test_a_plain_mapping_goes_where_the_merge_changed_nothing(wrapped, x) -> None:
    model = wrapped(target_modules=["q_proj"])
    for _, layer in quantlora.lora_layers(model):
        torch.nn.init.zeros_(layer.lora_B["default"].weight)
    before, expected = dict(model.state_dict()), model(x)
    quantlora.merge(model)
    model.load_state_dict(before)
    assert torch.equal(model(x), expected)
