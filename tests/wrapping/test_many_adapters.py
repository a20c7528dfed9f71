"""Hundreds of adapters on one layer: what each further one costs, and what failing leaves."""

from __future__ import annotations

import sys
from collections.abc import Callable
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


def test_256_adapters_on_one_layer_cost_little_more_than_256_times_one() -> None:
    model = nn.Sequential(nn.Linear(16, 16))
    added(model, "first")
    early = calls(lambda: added(model, "early"))
    for i in range(254):
        added(model, f"a{i}")
    assert calls(lambda: added(model, "late")) < 2 * early  # it was 35 times as many


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
