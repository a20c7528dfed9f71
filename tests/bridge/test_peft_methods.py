"""The methods of a ``PeftModel`` on a wrapped model, against PEFT's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import quantlora
from quantlora.testing.models import tiny_llama

peft = pytest.importorskip("peft")
IDS = torch.arange(8)[None]


def wrapped(**fields: Any) -> Any:
    return quantlora.wrap(
        tiny_llama(), target_modules=["q_proj"], init_lora_weights=False, **fields
    )


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def test_the_parameters_are_counted_as_pefts(capsys: pytest.CaptureFixture[str]) -> None:
    theirs = peft.get_peft_model(tiny_llama(), peft.LoraConfig(target_modules=["q_proj"]))
    ours = wrapped()
    assert ours.get_nb_trainable_parameters() == theirs.get_nb_trainable_parameters()
    theirs.print_trainable_parameters()
    printed = capsys.readouterr().out
    ours.print_trainable_parameters()
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize("backend", ["normalfloat", "bitsandbytes_4bit"])
def test_a_packed_weight_is_counted_as_its_matrix(backend: str) -> None:
    if backend == "bitsandbytes_4bit":
        pytest.importorskip("bitsandbytes")
    packed: Any = quantlora.wrap(tiny_llama(), r=4, backend=backend)
    plain: Any = quantlora.wrap(tiny_llama(), r=4)
    assert packed.get_nb_trainable_parameters() == plain.get_nb_trainable_parameters()


def test_merge_and_unload_leaves_the_plain_model_with_the_update() -> None:
    model = wrapped()
    wanted = logits(model)
    plain = model.merge_and_unload(safe_merge=True)
    assert plain is model
    assert not hasattr(model, "merge_and_unload")
    torch.testing.assert_close(logits(plain), wanted)


def test_merge_adapter_and_unmerge_adapter_are_the_identity_together() -> None:
    model = wrapped()
    before = logits(model)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), before)
    model.unmerge_adapter()
    assert torch.equal(logits(model), before)


def test_unload_and_disable_adapter_give_the_base() -> None:
    model, base = wrapped(), tiny_llama()
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(base))
    assert not torch.equal(logits(model), logits(base))
    assert torch.equal(logits(model.unload()), logits(base))


def test_adapters_are_combined_and_the_base_is_the_model() -> None:
    model = wrapped()
    model.add_adapter("second", peft.LoraConfig(target_modules=["q_proj"]))
    model.add_weighted_adapter(["default", "second"], [1.0, 1.0], "both", combination_type="cat")
    assert model.active_adapters() == ["both"]
    assert model.get_base_model() is model
