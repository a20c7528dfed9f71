"""`reference_model`: a frozen twin that shares the base."""

from __future__ import annotations

import copy

import pytest
import torch

import quantlora
from quantlora.errors import AdapterError
from quantlora.testing.models import tiny_llama
from tests.training.preference import already_trained

IDS = torch.tensor([[1, 2, 3, 4]])


@pytest.mark.parametrize("fields", [{}, {"bias": "all"}, {"modules_to_save": ["lm_head"]}])
@pytest.mark.parametrize("backend", ["auto", "bitsandbytes_4bit", "normalfloat"])
def test_what_is_trained_does_not_reach_the_reference(backend, fields):
    model = already_trained(quantlora.wrap(tiny_llama(), backend=backend, r=2, **fields)).eval()
    before = model(IDS).logits.detach()
    reference = quantlora.reference_model(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    assert torch.equal(reference(IDS).logits, before)
    assert not torch.allclose(model(IDS).logits, before)


def test_frozen_tensors_are_the_models_own():
    model = quantlora.wrap(tiny_llama(), backend="bitsandbytes_4bit", r=2)
    reference = quantlora.reference_model(model)
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        assert (ours is theirs) is not ours.requires_grad
    state = model.model.layers[0].self_attn.q_proj.base_layer.quant_state
    assert reference.model.layers[0].self_attn.q_proj.base_layer.quant_state is state


def test_switching_the_policys_adapters_leaves_the_reference():
    model = already_trained(quantlora.wrap(tiny_llama(), r=2)).eval()
    reference = quantlora.reference_model(model)
    before = reference(IDS).logits
    quantlora.disable_adapters(model)
    assert torch.equal(reference(IDS).logits, before)
    assert not torch.allclose(model(IDS).logits, before)


def test_a_wrapped_part_of_a_model_will_do():
    model = tiny_llama().eval()
    quantlora.wrap(model.model, r=2)
    reference = quantlora.reference_model(model)
    assert torch.equal(reference(IDS).logits, model(IDS).logits)


def test_a_forward_put_on_the_policy_is_not_the_references():
    model = already_trained(quantlora.wrap(tiny_llama(), r=2)).eval()
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(model)
    reference = quantlora.reference_model(model)
    before = reference(IDS).logits
    quantlora.disable_adapters(model)
    assert torch.equal(reference(IDS).logits, before)


@pytest.mark.parametrize("merged", [False, True])
def test_a_model_that_is_plain_or_merged_is_refused(merged):
    model = tiny_llama()
    if merged:
        quantlora.merge(quantlora.wrap(model, r=2))
    with pytest.raises(AdapterError):
        quantlora.reference_model(model)


def test_a_copy_of_the_policy_can_be_made_beside_it():
    model = quantlora.wrap(tiny_llama(), r=2).eval()
    reference = quantlora.reference_model(model)
    assert torch.equal(copy.deepcopy(reference)(IDS).logits, model(IDS).logits)
