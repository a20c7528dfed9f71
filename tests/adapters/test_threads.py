"""One model called by several threads: each gets what it would get alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import quantlora
from tests.tools.expert_models import Experts

X = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
COUNT = 4


class _Reader(nn.Module):
    """Gives its parameter, by way of an attribute that every call sets."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        return x @ self.w


def linear(**fields: Any) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    for name in ("a", "b"):
        quantlora.wrap(model, adapter_name=name, r=2, init_lora_weights=False, **fields)
    return model


def together(work: Callable[[int], Tensor], times: int = 50) -> list[list[Tensor]]:
    """What ``work`` gives in each thread, all of them busy at once."""
    start = Barrier(COUNT)

    def one(number: int) -> list[Tensor]:
        start.wait()
        return [work(number) for _ in range(times)]

    with ThreadPoolExecutor(COUNT) as pool:
        return list(pool.map(one, range(COUNT)))


@pytest.mark.parametrize("module", [lambda: Experts(False), lambda: Experts(True), _Reader])
@pytest.mark.parametrize("gradients", [False, True])
def test_adapted_parameters_are_of_one_call(module: Any, gradients: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(module())
    fields: dict[str, Any] = {"target_modules": [], "target_parameters": ["w"]}
    quantlora.wrap(model, r=2, init_lora_weights=False, **fields)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    with torch.set_grad_enabled(gradients):
        wanted = model(X)

    def work(_: int) -> Tensor:
        with torch.set_grad_enabled(gradients):
            return model(X)

    assert all(torch.equal(one, wanted) for each in together(work) for one in each)
    assert all(torch.equal(model.state_dict()[name], one) for name, one in before.items())


def test_a_mixed_batch_is_that_of_its_thread() -> None:
    model = linear()
    names = [["a"] * 6, ["b"] * 6, ["a", "b"] * 3, None]

    def work(number: int) -> Tensor:
        if names[number] is None:
            return model(X)
        with quantlora.mixed_batch(model, names[number]):
            return model(X)

    wanted = [work(number) for number in range(COUNT)]
    for each, right in zip(together(work), wanted, strict=True):
        assert all(torch.equal(one, right) for one in each)


@pytest.mark.parametrize("head", [None, ["1"]])
def test_disabled_adapters_are_off_in_their_thread(head: list[str] | None) -> None:
    model = linear(target_modules=["0"], modules_to_save=head)
    flags = [parameter.requires_grad for parameter in model.parameters()]

    def work(number: int) -> Tensor:
        if number % 2:
            return model(X)
        with quantlora.adapters_disabled(model):
            return model(X)

    wanted = [work(number) for number in range(COUNT)]
    assert not torch.equal(wanted[0], wanted[1])
    for each, right in zip(together(work), wanted, strict=True):
        assert all(torch.equal(one, right) for one in each)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags


def test_an_attribute_that_forward_sets_is_kept() -> None:
    model = nn.Sequential(_Reader())
    quantlora.wrap(model, r=2, target_modules=[], target_parameters=["w"])
    with torch.no_grad():
        model(X)
        model(X)
    assert model[0].base_layer.calls == 2


def test_a_method_of_the_instance_is_called_with_the_updated_parameters() -> None:
    """accelerate puts its own ``forward`` on a module so."""
    from accelerate.hooks import ModelHook, add_hook_to_module

    model = nn.Sequential(_Reader())
    plain = copy.deepcopy(model)
    for one in (plain, model):
        torch.manual_seed(0)
        quantlora.wrap(one, r=2, target_modules=[], target_parameters=["w"])
        nn.init.normal_(one[0].lora_B["default"]["w"].weight)
    add_hook_to_module(model[0].base_layer, ModelHook())
    with torch.no_grad():
        assert torch.equal(model(X), plain(X))


def test_a_keyword_is_for_the_call_of_its_thread() -> None:
    from quantlora.testing.models import tiny_llama

    model, ids = tiny_llama(), torch.arange(12).reshape(2, 6)
    for name in ("a", "b"):
        fields: dict[str, Any] = {"target_modules": ["q_proj"], "init_lora_weights": False}
        quantlora.wrap(model, adapter_name=name, r=2, **fields)
    given: list[dict[str, Any]] = [
        {},
        {"adapter_names": ["a", "b"]},
        {},
        {"adapter_names": ["b", "a"]},
    ]

    @torch.no_grad()
    def work(number: int) -> Tensor:
        logits: Tensor = model(ids, **given[number]).logits
        return logits

    wanted = [work(number) for number in range(COUNT)]
    for each, right in zip(together(work, 8), wanted, strict=True):
        assert all(torch.equal(one, right) for one in each)
