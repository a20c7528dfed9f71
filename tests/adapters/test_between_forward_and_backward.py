"""What is done between forward and backward changes no gradient of the recorded graph."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import quantlora


def model(**fields: object) -> nn.Module:
    torch.manual_seed(0)
    one = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    for name in ("a", "b"):
        quantlora.wrap(one, adapter_name=name, r=2, init_lora_weights=False, **fields)
    quantlora.set_adapter(one, "a")
    return one


def trained_of_a(one: nn.Module) -> list[nn.Parameter]:
    """What is trained now, which is a's, with the biases of the model that it trains."""
    names = [(name, p) for name, p in one.named_parameters() if p.requires_grad]
    return [p for name, p in names if ".b." not in name]


def loss(one: nn.Module) -> Tensor:
    torch.manual_seed(1)
    return one(torch.randn(3, 8, dtype=torch.float64)).square().sum()


def within_disabled(one: nn.Module, y: Tensor) -> None:
    with quantlora.adapters_disabled(one):
        y.backward()


def after(change: Callable[[nn.Module], object]) -> Callable[[nn.Module, Tensor], None]:
    def run(one: nn.Module, y: Tensor) -> None:
        change(one)
        y.backward()

    return run


BETWEEN = {
    "a block without adapters": within_disabled,
    "adapters disabled": after(quantlora.disable_adapters),
    "another active adapter": after(lambda one: quantlora.set_adapter(one, "b")),
    "other ones twice": after(lambda one: [quantlora.set_adapter(one, n) for n in "bab"]),
    "merged": after(quantlora.merge),
    "unloaded": after(quantlora.unload),
}


@pytest.mark.parametrize("fields", [{}, {"use_dora": True}, {"bias": "lora_only"}])
@pytest.mark.parametrize("what", BETWEEN)
def test_the_recorded_graph_gives_its_gradient(what: str, fields: dict[str, object]) -> None:
    wanted, found = (model(target_modules=["0", "2"], **fields) for _ in range(2))
    loss(wanted).backward()
    trained = trained_of_a(found)
    BETWEEN[what](found, loss(found))
    assert len(trained) == len(trained_of_a(wanted)) >= 4
    for right, one in zip(trained_of_a(wanted), trained, strict=True):
        assert right.grad is not None
        assert one.grad is not None
        assert torch.equal(right.grad, one.grad)


def test_what_is_trained_afterwards_is_what_was_chosen() -> None:
    one = model(target_modules=["0", "2"])
    y = loss(one)
    quantlora.set_adapter(one, "b")
    y.backward()
    assert not trained_of_a(one)
    quantlora.set_adapter(one, "a")
    loss(one).backward()
    assert len(trained_of_a(one)) == 4


def test_a_graph_from_while_they_are_off_gives_no_gradient() -> None:
    one = model(target_modules=["0", "2"])
    before = loss(one)
    with quantlora.adapters_disabled(one):
        inner = loss(one)
        before.backward()
        assert not inner.requires_grad
        assert not any(p.requires_grad for p in one.parameters())


def test_nothing_is_kept_of_a_parameter_that_no_graph_leads_to() -> None:
    one = model(target_modules=["0"])
    kept = weakref.ref(one[0].lora_A["a"].weight)
    quantlora.set_adapter(one, "b")
    quantlora.delete_adapter(one, "a")
    gc.collect()
    assert kept() is None
