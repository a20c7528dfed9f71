"""Which adapters count: set, disable, delete, rename, unload."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import quantlora
from quantlora import LoraLinear, lora_layers


@pytest.fixture
def two(wrapped: Callable[..., nn.Module]) -> nn.Module:
    """Adapter "default" on q_proj and up_proj, "second" on up_proj and down_proj."""
    wrapped()
    return wrapped("second", target_modules=["up_proj", "down_proj"])


def trained(model: nn.Module) -> set[str]:
    names = (name for name, one in model.named_parameters() if one.requires_grad)
    return {name.split(".")[-2] for name in names}


@pytest.mark.parametrize("names", [["default"], ["second"], ["second", "default"], []])
def test_the_active_adapters_count_and_learn(names: list[str], two: nn.Module) -> None:
    quantlora.set_adapter(two, names)
    assert quantlora.active_adapters(two) == names
    assert trained(two) == set(names)
    assert set(two.layers[0].up_proj.active_unmerged) == set(names)
    assert set(two.layers[0].q_proj.active_unmerged) == set(names) & {"default"}


def test_an_adapter_named_twice_counts_once(two: nn.Module, x: Tensor) -> None:
    quantlora.set_adapter(two, "default")
    once = two(x)
    quantlora.set_adapter(two, ["default", "default"])
    assert torch.equal(two(x), once)


def test_an_unknown_adapter_changes_nothing(two: nn.Module) -> None:
    before = trained(two)
    with pytest.raises(quantlora.AdapterError):
        quantlora.set_adapter(two, ["default", "third"])
    assert quantlora.active_adapters(two) == ["second"]
    assert trained(two) == before


def test_a_merged_adapter_cannot_be_left_out(two: nn.Module) -> None:
    """It is in the weights, and would count on."""
    quantlora.merge(two)
    with pytest.raises(quantlora.AdapterError, match=r"second is merged .* quantlora\.unmerge"):
        quantlora.set_adapter(two, "default")


def test_disabled_adapters_leave_the_base(model: nn.Module, x: Tensor) -> None:
    before = model(x)
    quantlora.wrap(model, r=2, init_lora_weights=False)
    quantlora.disable_adapters(model)
    assert torch.allclose(model(x), before, rtol=1e-6)
    quantlora.enable_adapters(model)
    assert not torch.allclose(model(x), before, rtol=1e-6)


def test_the_context_restores_what_was(two: nn.Module) -> None:
    quantlora.disable_adapters(two)
    with quantlora.adapters_disabled(two):
        pass
    assert not any(layer.enabled for _, layer in lora_layers(two))


def test_the_context_restores_after_an_error(two: nn.Module) -> None:
    def fail() -> None:
        with quantlora.adapters_disabled(two):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert all(layer.enabled for _, layer in lora_layers(two))


def test_a_merged_adapter_cannot_be_disabled(two: nn.Module) -> None:
    quantlora.merge(two)
    with pytest.raises(quantlora.AdapterError, match="second is merged into the base and cannot"):
        quantlora.disable_adapters(two)


def test_a_deleted_adapter_is_gone(two: nn.Module) -> None:
    with pytest.warns(quantlora.AdapterWarning, match="'default' is active now"):
        quantlora.delete_adapter(two, "second")
    assert quantlora.active_adapters(two) == ["default"]
    assert not [name for name in two.state_dict() if "second" in name]
    assert two.layers[0].up_proj.adapters == ("default",)


def test_the_name_of_a_deleted_adapter_is_free(two: nn.Module) -> None:
    quantlora.delete_adapter(two, "second")
    quantlora.wrap(two, r=1, target_modules=["head"], adapter_name="second")
    assert quantlora.active_adapters(two) == ["second"]


def test_a_merged_adapter_cannot_be_deleted(two: nn.Module) -> None:
    quantlora.merge(two)
    with pytest.raises(quantlora.AdapterError, match="'second' is merged; unmerge it first"):
        quantlora.delete_adapter(two, "second")


def test_unload_gives_the_plain_model_back(model: nn.Module, x: Tensor) -> None:
    before, modules = model(x), list(model.modules())
    quantlora.wrap(model, r=2, init_lora_weights=False)
    quantlora.unload(model)
    assert list(model.modules()) == modules
    assert torch.equal(model(x), before)
    assert not any(isinstance(one, LoraLinear) for one in model.modules())


def test_an_unloaded_model_can_be_wrapped_again(two: nn.Module) -> None:
    quantlora.unload(two)
    quantlora.wrap(two, r=2, target_modules=["q_proj"])
    assert quantlora.active_adapters(two) == ["default"]


def test_a_renamed_adapter_is_the_same(two: nn.Module, x: Tensor) -> None:
    before = two(x)
    quantlora.rename_adapter(two, "second", "third")
    assert quantlora.active_adapters(two) == ["third"]
    assert trained(two) == {"third"}
    assert torch.equal(two(x), before)


def test_an_adapter_added_to_a_disabled_model_counts(two: nn.Module, x: Tensor) -> None:
    """On layers that were disabled and on new ones alike."""
    quantlora.disable_adapters(two)
    quantlora.wrap(two, r=2, adapter_name="third")
    assert all(layer.active_unmerged == ("third",) for _, layer in lora_layers(two))


def test_a_model_within_data_parallelism_is_to_be_given_itself(wrapped):
    with pytest.raises(quantlora.AdapterError, match=r"no adapters: give its model\.module"):
        quantlora.active_adapters(torch.nn.DataParallel(wrapped()))
