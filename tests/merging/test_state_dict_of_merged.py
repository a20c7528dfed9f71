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
