"""The state dict of a merged model is for merged models."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import quantlora
from quantlora.errors import AdapterError
from quantlora.testing.models import tiny_llama

IDS = torch.tensor([[1, 3, 5, 7]])


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


KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "copy": {"modules_to_save": ["lm_head"]},
    "bias": {"bias": "all"},
    "dora": {"use_dora": True},
    "packed": {"backend": "normalfloat"},
    "tensor subclass": {"backend": "torchao"},
    "embedding": {"target_modules": ["embed_tokens"]},
    "tokens": {"trainable_token_indices": [3, 5]},
}


def changed(kind: str) -> Any:
    """A model with an adapter of ``kind`` that has an effect in all its parts."""
    if kind == "tensor subclass":
        pytest.importorskip("torchao")
    fields = {"target_modules": ["q_proj"], "r": 2, "init_lora_weights": False} | KINDS[kind]
    model = quantlora.wrap(tiny_llama(), **fields).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in filter(lambda one: one.requires_grad, model.parameters()):
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_mapping_says_what_is_merged_whatever_is_trained(kind) -> None:
    model = changed(kind)
    other = copy.deepcopy(model)
    before = dict(model.state_dict())
    quantlora.merge(model)
    merged = dict(model.state_dict())
    for target, mapping in ((other, merged), (model, before)):
        with pytest.raises(AdapterError, match="count twice or not at all"):
            target.load_state_dict(mapping)
    quantlora.merge(other)
    other.load_state_dict(merged)
    assert torch.equal(other(IDS).logits, model(IDS).logits)
    quantlora.unmerge(model)
    assert dict(model.state_dict()).keys() == before.keys()


@pytest.mark.parametrize("kind", ["lora", "dora", "packed", "embedding", "tokens"])
def test_an_adapter_alone_is_refused_where_another_is_merged(kind) -> None:
    model, other = changed(kind), changed(kind)
    trained = [name for name, one in model.named_parameters() if one.requires_grad]
    values = {name: 2 * model.state_dict()[name] for name in trained}
    quantlora.merge(other)
    expected = other(IDS).logits
    with pytest.raises(AdapterError, match="count twice or not at all"):
        other.load_state_dict(values, strict=False)
    assert torch.equal(other(IDS).logits, expected)
    same = {name: other.get_parameter(name).detach().clone() for name in trained}
    other.load_state_dict(same, strict=False)
    assert torch.equal(other(IDS).logits, expected)


def test_a_plain_mapping_goes_where_the_merge_changed_nothing(wrapped, x) -> None:
    model = wrapped(target_modules=["q_proj"])
    for _, layer in quantlora.lora_layers(model):
        torch.nn.init.zeros_(layer.lora_B["default"].weight)
    before, expected = dict(model.state_dict()), model(x)
    quantlora.merge(model)
    model.load_state_dict(before)
    assert torch.equal(model(x), expected)
