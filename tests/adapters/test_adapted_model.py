"""`AdaptedModel`: what is in it, and that operations go over the model seldom."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import quantlora
from quantlora.adapters.adapted_model import AdaptedModel


class Listed(dict):
    """The children of a module; counts how often somebody goes over them."""

    count = 0

    def items(self) -> Any:
        self.count += 1
        return super().items()

    def values(self) -> Any:
        self.count += 1
        return super().values()


def net() -> nn.Module:
    block = nn.Sequential(OrderedDict(inner=nn.Linear(8, 8), act=nn.ReLU(), outer=nn.Linear(8, 8)))
    return nn.Sequential(OrderedDict(body=nn.Sequential(block), head=nn.Linear(8, 4)))


def wrap(model: nn.Module) -> nn.Module:
    return quantlora.wrap(model, r=2, target_modules=["inner", "head"])


def wrapped() -> nn.Module:
    return wrap(net())


OPERATIONS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, Path], Any], int]] = {
    "wrap": (net, lambda m, _: wrap(m), 5),
    "merge": (wrapped, lambda m, _: quantlora.merge(m), 3),
    "set_adapter": (wrapped, lambda m, _: quantlora.set_adapter(m, "default"), 1),
    "save": (wrapped, lambda m, folder: quantlora.save_adapter(m, folder), 2),
    "load": (net, lambda m, folder: quantlora.load_adapter(m, folder), 6),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_goes_over_the_model_no_more_often_than_this(
    name: str, tmp_path: Path
) -> None:
    make, operation, limit = OPERATIONS[name]
    quantlora.save_adapter(wrapped(), tmp_path)
    model = make()
    block = model.get_submodule("body.0")
    block._modules = listed = Listed(block._modules)
    operation(model, tmp_path)
    assert 1 <= listed.count <= limit


def test_a_shared_module_has_all_its_paths_and_its_adapters_once() -> None:
    shared = nn.Linear(8, 8)
    model = quantlora.wrap(nn.Sequential(shared, nn.ReLU(), shared), r=2, target_modules=["0", "2"])
    adapted = AdaptedModel(model)
    assert adapted.modules["0"] is adapted.modules["2"]
    assert list(adapted.adapter_modules) == ["0"]


def test_what_is_inside_an_adapted_layer_is_no_module_of_the_model() -> None:
    paths = AdaptedModel(wrapped()).modules
    assert "body.0.inner" in paths
    assert not [path for path in paths if "base_layer" in path or "lora_A" in path]


def test_a_model_that_was_never_wrapped_has_no_adapters() -> None:
    assert not AdaptedModel(net()).state.configs
    with pytest.raises(quantlora.AdapterError, match="has no adapters"):
        AdaptedModel.of(net())
