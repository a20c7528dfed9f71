"""``adapter_names`` as a keyword of the model, and mixed batches as a whole model has them."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

import quantlora
from quantlora.errors import AdapterError
from quantlora.testing.models import tiny_llama
from tests.tools.peft_oracle import IDS, relative

NAMES = ["default", "__base__", "second", "second", "default"]


def two_adapters() -> Any:
    model = quantlora.wrap(tiny_llama(), r=4, init_lora_weights=False)
    quantlora.wrap(model, adapter_name="second", r=2, use_dora=True, init_lora_weights=False)
    return model.eval()


def mixed(model: Any) -> Tensor:
    with torch.no_grad(), quantlora.mixed_batch(model, NAMES):
        return model(IDS).logits


def test_the_keyword_is_a_mixed_batch() -> None:
    model = two_adapters()
    assert torch.equal(model(IDS, adapter_names=NAMES).logits, mixed(model))


def test_it_holds_for_one_forward_only() -> None:
    model = two_adapters()
    before = model(IDS).logits
    model(IDS, adapter_names=NAMES)
    assert torch.equal(model(IDS).logits, before)


@torch.no_grad()
def test_a_mixed_batch_around_another_goes_on_after_it() -> None:
    model = two_adapters()
    others = ["second"] * len(NAMES)
    wanted = mixed(model)
    with quantlora.mixed_batch(model, NAMES):
        with quantlora.mixed_batch(model, others):
            model(IDS)
        assert torch.equal(model(IDS).logits, wanted)
        model(IDS, adapter_names=others)
        assert torch.equal(model(IDS).logits, wanted)


@torch.no_grad()
@pytest.mark.parametrize("name", ["self_attn", "layers.1"])
def test_copies_of_a_module_do_not_write_to_one_cache(name: str) -> None:
    model = tiny_llama()
    for adapter in ("default", "second"):
        quantlora.wrap(
            model, adapter_name=adapter, target_modules=["up_proj"], modules_to_save=[name]
        )
    with pytest.raises(AdapterError, match=r"DynamicCache.*use_cache=False"):
        model(IDS, adapter_names=NAMES, use_cache=True)
    model(IDS, adapter_names=NAMES, use_cache=False)
    model(IDS, adapter_names=["second"] * len(NAMES), use_cache=True)


def test_it_is_forgotten_when_forward_fails() -> None:
    model = two_adapters()
    before = model(IDS).logits
    with pytest.raises(AdapterError, match="2 entries"):
        model(IDS, adapter_names=["default", "second"])
    assert torch.equal(model(IDS).logits, before)


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_takes_it_too(twin: Any) -> None:
    model = two_adapters()
    assert torch.equal(twin(model)(IDS, adapter_names=NAMES).logits, mixed(model))


def test_an_unloaded_model_has_no_hooks_left() -> None:
    model = two_adapters()
    quantlora.unload(model)
    assert not model._forward_pre_hooks
    assert not model._forward_hooks


def test_an_unknown_name_is_named() -> None:
    with pytest.raises(AdapterError, match="Did you mean 'second'"):
        two_adapters()(IDS, adapter_names=["secnd"] * 5)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_mixed_batch_trains_under_gradient_checkpointing(reentrant: bool) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = two_adapters().train()
        quantlora.set_adapter(model, ["default", "second"])
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        loss = model(IDS, labels=IDS, adapter_names=NAMES).loss
        loss.backward()
        layer = model.get_submodule("model.layers.0.mlp.up_proj")
        gradients.append(layer.adapter_tensors("second")["lora_A.weight"].grad)
    assert relative(gradients[1], gradients[0]) <= 1e-5


def test_generation_takes_a_mixed_batch() -> None:
    model = two_adapters()
    prompt = IDS[:, :4]
    options: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 2}
    with quantlora.mixed_batch(model, NAMES):
        together = model.generate(prompt, **options)
    quantlora.set_adapter(model, "second")
    alone = model.generate(prompt[2:4], **options)
    assert torch.equal(together[2:4], alone)


def test_disabled_adapters_stay_disabled_in_a_mixed_batch() -> None:
    model = two_adapters()
    with quantlora.adapters_disabled(model):
        assert torch.equal(mixed(model), model(IDS).logits)
