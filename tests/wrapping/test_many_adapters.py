"""Hundreds of adapters on one layer: what each further one costs, and what failing leaves."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import quantlora
from quantlora.layers.layer import LoraLayer
from quantlora.wrapping.transaction import Transaction


def added(model: nn.Module, name: str) -> None:
    quantlora.wrap(model, adapter_name=name, r=2, target_modules=["0"])


def calls(action: Callable[[], Any]) -> int:
    """How many functions of Python are called: a time that no other program can disturb."""
    count = 0

    def note(frame: Any, event: str, arg: Any) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(None)
    return count


ACTIONS: dict[str, Callable[[nn.Module, Path], Any]] = {
    "add": lambda model, folder: added(model, "new"),
    "load": lambda model, folder: quantlora.load_adapter(model, folder, "new"),
    "switch": lambda model, folder: quantlora.set_adapter(model, "first"),
    "switch off and on": lambda model, folder: off_and_on(model),
    "save": lambda model, folder: quantlora.save_adapter(model, folder, "second"),
    "delete": lambda model, folder: quantlora.delete_adapter(model, "second"),
}


def off_and_on(model: nn.Module) -> None:
    with quantlora.adapters_disabled(model):
        pass


@pytest.mark.parametrize("action", ACTIONS)
def test_among_a_hundred_adapters_an_action_costs_what_it_costs_among_two(
    action: str, tmp_path: Path
) -> None:
    few, many = (nn.Sequential(nn.Linear(16, 16)).eval() for _ in range(2))
    for model, further in ((few, 0), (many, 98)):
        for name in ("first", "second", *map(str, range(further))):
            added(model, name)
        quantlora.save_adapter(model, tmp_path / model[0].path, "first")
    saved = tmp_path / "0" / "first"
    act = ACTIONS[action]
    act(copy.deepcopy(few), saved)  # what is imported and cached the first time
    alone = calls(lambda: act(few, saved))
    assert calls(lambda: act(many, saved)) < 1.2 * alone + 20


@pytest.mark.parametrize("dora", [False, True])
def test_choosing_among_many_adapters_trains_those_alone(dora: bool) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Embedding(5, 4))
    for i in range(4):
        fields = {"r": 2, "use_dora": dora, "target_modules": ["0", "1"]}
        quantlora.wrap(model, adapter_name=f"a{i}", **fields)
    for parameter in model.parameters():
        parameter.requires_grad_(True)  # by hand, by another library
    quantlora.set_adapter(model, ["a1", "a3"])
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert not [name for name in trained if ".a0" in name or ".a2" in name]
    assert {n for n, _ in model.named_parameters() if "a1" in n or "a3" in n} <= trained


def fails_within(model: nn.Module, change: Callable[[], Any]) -> None:
    """``change`` in a transaction that fails afterwards."""

    def act() -> None:
        with Transaction(model):
            change()
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        act()


def test_failing_puts_other_adapters_flags_and_modes_back() -> None:
    model = nn.Sequential(nn.Linear(6, 6))
    quantlora.wrap(model, r=2, lora_dropout=0.5, target_modules=["0"])
    before = [module.training for module in model.modules()]
    fails_within(model, lambda: model.eval().requires_grad_(False))
    assert [module.training for module in model.modules()] == before
    layer = model[0]
    assert isinstance(layer, LoraLayer)
    assert all(one.requires_grad for one in layer.adapter_tensors("default").values())


def test_a_transaction_within_another_leaves_putting_back_to_it() -> None:
    model = nn.Sequential(nn.Linear(6, 6))
    old = model[0]

    def change() -> None:
        model[0] = nn.Tanh()
        fails_within(model, lambda: setattr(model, "0", nn.ReLU()))

    fails_within(model, change)
    assert model[0] is old
    fails_within(model, lambda: setattr(model, "0", nn.ReLU()))  # remembered anew
    assert model[0] is old
