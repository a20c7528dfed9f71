"""What is trained and what is active once adapters are off or deleted."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import quantlora
from quantlora import LoraLinear
from quantlora.errors import AdapterWarning


def model(**fields: Any) -> nn.Sequential:
    plain = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    return quantlora.wrap(plain, r=2, target_modules=["0"], **fields)


def trained(one: nn.Module) -> list[str]:
    return [name for name, parameter in one.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize("fields", [{}, {"modules_to_save": ["1"]}, {"bias": "all"}])
def test_nothing_is_trained_while_the_adapters_are_off(fields: dict[str, Any]) -> None:
    one = model(**fields)
    before = trained(one)
    with quantlora.adapters_disabled(one):
        assert not trained(one)
    assert trained(one) == before
    quantlora.disable_adapters(one)
    quantlora.disable_adapters(one)
    assert not trained(one)
    quantlora.enable_adapters(one)
    assert trained(one) == before


def test_what_was_frozen_by_hand_stays_so() -> None:
    one = model()
    one[0].lora_A.requires_grad_(False)
    with quantlora.adapters_disabled(one), quantlora.adapters_disabled(one):
        pass
    assert trained(one) == ["0.lora_B.default.weight"]


def there_and_back(one: nn.Module) -> None:
    quantlora.wrap(one, r=2, target_modules=["0"], adapter_name="second")
    quantlora.rename_adapter(one, "default", "first")
    quantlora.set_adapter(one, "first")
    quantlora.rename_adapter(one, "first", "default")
    quantlora.delete_adapter(one, "second")


def merged_and_back(one: nn.Module) -> None:
    quantlora.merge(one)
    quantlora.unmerge(one)


CHANGES = [there_and_back, merged_and_back, lambda one: quantlora.set_adapter(one, "default")]


@pytest.mark.parametrize("change", CHANGES)
def test_a_factor_that_was_frozen_by_hand_stays_so(change: Callable[[nn.Module], None]) -> None:
    one = model()
    one[0].lora_A.requires_grad_(False)
    change(one)
    assert trained(one) == ["0.lora_B.default.weight"]
    one[0].lora_A.requires_grad_(True)
    change(one)
    assert len(trained(one)) == 2


def test_a_factor_that_its_variant_freezes_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    made = LoraLinear.new_factors

    def frozen_a(*args: Any) -> tuple[nn.Module, nn.Module]:
        A, B = made(*args)
        return A.requires_grad_(False), B

    monkeypatch.setattr(LoraLinear, "new_factors", frozen_a)
    one = model()
    assert trained(one) == ["0.lora_B.default.weight"]
    there_and_back(one)
    assert trained(one) == ["0.lora_B.default.weight"]


def test_an_adapter_that_was_frozen_as_a_whole_is_trained_once_it_is_chosen() -> None:
    one = model()
    one.requires_grad_(False)
    merged_and_back(one)
    assert not trained(one)
    quantlora.set_adapter(one, "default")
    assert len(trained(one)) == 2


def test_an_adapter_chosen_while_off_is_trained_once_they_are_on() -> None:
    one = model()
    quantlora.wrap(one, r=2, target_modules=["0"], adapter_name="second")
    with quantlora.adapters_disabled(one):
        quantlora.set_adapter(one, "default")
        assert not trained(one)
    assert trained(one) == ["0.lora_A.default.weight", "0.lora_B.default.weight"]


def test_an_adapter_added_while_off_is_trained() -> None:
    one = model()
    with quantlora.adapters_disabled(one):
        quantlora.wrap(one, r=2, target_modules=["0"], adapter_name="second")
    assert trained(one) == ["0.lora_A.second.weight", "0.lora_B.second.weight"]
    assert one[0].enabled


def test_another_adapter_takes_the_place_of_a_deleted_one() -> None:
    one = model()
    quantlora.wrap(one, r=2, target_modules=["0"], adapter_name="second")
    with pytest.warns(AdapterWarning, match="'default' is active now"):
        quantlora.delete_adapter(one, "second")
    assert quantlora.active_adapters(one) == ["default"]
    assert trained(one) == ["0.lora_A.default.weight", "0.lora_B.default.weight"]


@pytest.mark.parametrize("trainable", [False, True])
def test_dropout_is_for_adapters_that_are_trained(trainable: bool, tmp_path: Path) -> None:
    quantlora.save_adapter(model(lora_dropout=0.5, init_lora_weights=False), tmp_path)
    plain = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    one = quantlora.load_adapter(plain, tmp_path, is_trainable=trainable)
    x = torch.ones(4, 8)
    assert torch.equal(one(x), one(x)) is not trainable


@pytest.mark.parametrize("block", [True, False])
def test_a_copy_made_while_off(block: bool) -> None:
    """It is not in the block, but off for good where the original is."""
    one = model()
    before = trained(one)
    if block:
        with quantlora.adapters_disabled(one):
            other = copy.deepcopy(one)
    else:
        quantlora.disable_adapters(one)
        other = copy.deepcopy(one)
        assert not trained(other)
        quantlora.enable_adapters(other)
    assert trained(other) == before
    assert other[0].enabled
