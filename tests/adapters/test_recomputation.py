"""Gradient checkpointing computes again with the adapters of the forward, whatever was since."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import quantlora
from quantlora.errors import AdapterError
from tests.adapters.test_between_forward_and_backward import (
    BETWEEN,
    after,
    model,
    trained_of_a,
)

X = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(3, 8)
KINDS: list[dict[str, object]] = [
    {},
    {"use_dora": True},
    {"bias": "all"},
    {"target_modules": ["0"], "modules_to_save": ["2"]},
]
STATES = [name for name in BETWEEN if name not in ("merged", "unloaded")]


def made(**fields: object) -> nn.Module:
    return model(**{"target_modules": ["0", "2"], **fields})


def computed(one: nn.Module, reentrant: bool | None) -> tuple[Tensor, Tensor]:
    """x and a loss; without checkpointing for None."""
    x = X.clone().requires_grad_()
    y = one(x) if reentrant is None else checkpoint(one, x, use_reentrant=reentrant)
    return x, y.square().sum()


def gradients(
    one: nn.Module,
    reentrant: bool | None,
    between: Callable[[nn.Module, Tensor], object] = lambda _, y: y.backward(),
) -> list[Tensor]:
    trained = trained_of_a(one)
    x, y = computed(one, reentrant)
    between(one, y)
    found = [p.grad for p in (x, *trained)]
    assert len(found) >= 5
    return [grad for grad in found if grad is not None]


@pytest.mark.parametrize("fields", KINDS, ids=str)
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("what", STATES)
def test_it_computes_again_with_the_adapters_of_the_forward(
    what: str, reentrant: bool, fields: dict[str, object]
) -> None:
    wanted = gradients(made(**fields), None)
    found = gradients(made(**fields), reentrant, BETWEEN[what])
    assert all(map(torch.equal, wanted, found))
    assert len(wanted) == len(found)


@pytest.mark.parametrize("reentrant", [True, False])
def test_afterwards_that_is_trained_which_was_chosen(reentrant: bool) -> None:
    one = made(bias="all")
    gradients(one, reentrant, BETWEEN["another active adapter"])
    names = [name for name, p in one.named_parameters() if p.requires_grad and "lora" in name]
    assert names
    assert all(".b." in name for name in names)
    x, y = computed(one, None)
    y.backward()
    after_b = made(bias="all")
    quantlora.set_adapter(after_b, "b")
    other, z = computed(after_b, None)
    z.backward()
    assert torch.equal(x.grad, other.grad)  # type: ignore[arg-type]


def add_a(one: nn.Module) -> None:
    quantlora.wrap(one, adapter_name="a", r=2, target_modules=["0", "2"])


@torch.no_grad()
def swap_values(one: nn.Module) -> None:
    for layer in (one[0], one[2]):  # type: ignore[index]
        for tensor in layer.adapter_tensors("a").values():
            tensor += 1


GONE = {
    "in place": swap_values,
    "merged": quantlora.merge,
    "removed": quantlora.unload,
    "deleted, renamed": lambda one: quantlora.delete_adapter(one, "a"),
    "replaced": lambda one: [quantlora.delete_adapter(one, "a"), add_a(one)],
    "renamed": lambda one: quantlora.rename_adapter(one, "a", "c"),
    "put on": lambda one: quantlora.wrap(one, adapter_name="d", r=2, use_dora=True),
}


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("what", GONE)
@pytest.mark.filterwarnings("ignore:adapter 'a' was active")
def test_what_cannot_be_had_again_is_named(what: str, reentrant: bool) -> None:
    with pytest.raises(AdapterError, match=rf"^0: gradient checkpointing .* {what}.*: call back"):
        gradients(made(), reentrant, after(GONE[what]))


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_module_trained_in_full_may_change_itself(reentrant: bool) -> None:
    one = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)).double()
    quantlora.wrap(one, r=2, target_modules=["0"], modules_to_save=["1"], init_lora_weights=False)
    plain, again = (copy.deepcopy(one) for _ in range(2))
    wanted, found = computed(plain, None), computed(again, reentrant)
    for x, y in (wanted, found):
        y.backward()
        assert x.grad is not None
    torch.testing.assert_close(wanted[0].grad, found[0].grad)


@pytest.mark.parametrize("reentrant", [True, False])
def test_parameters_that_sharding_puts_others_in_the_place_of_are_no_other_adapter(
    reentrant: bool,
) -> None:
    """FSDP2 has whole parameters in a module while it runs, and shards before and after."""
    wanted = gradients(made(), None)
    one = made()
    x, y = computed(one, reentrant)
    kept = {name: p for name, p in one.named_parameters() if "lora" in name}
    for name in kept:
        owner, _, key = name.rpartition(".")
        one.get_submodule(owner)._parameters[key] = nn.Parameter(kept[name].detach().clone())
    y.backward()
    assert torch.equal(wanted[0], x.grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_model_that_is_its_own_reference_trains(reentrant: bool) -> None:
    """As TRL's trainers do it: one forward with adapters, one without, backward."""

    def reference(one: nn.Module, y: Tensor) -> None:
        with torch.no_grad(), quantlora.adapters_disabled(one):
            _, plain = computed(one, reentrant)
        (y - plain).backward()
        assert plain != y

    wanted, found = gradients(made(), None), gradients(made(), reentrant, reference)
    assert all(map(torch.equal, wanted, found))


@pytest.mark.parametrize("reentrant", [True, False])
def test_two_graphs_of_two_adapters_have_one_backward(reentrant: bool) -> None:
    def both(one: nn.Module, reentrant: bool | None) -> list[Tensor]:
        losses = []
        for name in "ab":
            quantlora.set_adapter(one, name)
            losses.append(computed(one, reentrant))
        sum(y for _, y in losses).backward()  # type: ignore[union-attr]
        return [x.grad for x, _ in losses if x.grad is not None]

    wanted, found = both(made(), None), both(made(), reentrant)
    assert not torch.equal(*wanted)
    assert all(map(torch.equal, wanted, found))


@pytest.mark.parametrize("inner", [True, False])
@pytest.mark.parametrize("outer", [True, False])
@pytest.mark.filterwarnings("ignore:None of the inputs")  # within no_grad
def test_checkpoints_within_checkpoints(outer: bool, inner: bool) -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = made()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = checkpoint(self.inner, x.sin(), use_reentrant=inner)
            return y.sin()

    def disabled(one: nn.Module, y: Tensor) -> None:
        quantlora.disable_adapters(one.inner)  # type: ignore[arg-type]
        y.backward()

    wanted, found = gradients(Nested(), None), gradients(Nested(), outer, disabled)
    assert all(map(torch.equal, wanted, found))


@pytest.mark.parametrize("reentrant", [True, False])
def test_backward_after_the_block_of_a_mixed_batch(reentrant: bool) -> None:
    def mixed(one: nn.Module, reentrant: bool | None) -> Tensor:
        with quantlora.mixed_batch(one, ["b", "__base__", "a"]):
            x, y = computed(one, reentrant)
        y.backward()
        assert x.grad is not None
        return x.grad

    assert torch.equal(mixed(made(), None), mixed(made(), reentrant))


@pytest.mark.parametrize("change", [lambda one: quantlora.set_adapter(one, "b"), quantlora.unload])
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_compiled_layer_is_refused_where_it_was_switched(
    reentrant: bool, change: Callable[[nn.Module], object]
) -> None:
    one = made()
    compiled = torch.compile(one, backend="eager", fullgraph=True)
    wanted = gradients(made(), None)
    x, y = computed(compiled, reentrant)
    y.backward()
    assert torch.allclose(x.grad, wanted[0], atol=1e-6)  # type: ignore[arg-type]
    _, y = computed(compiled, reentrant)
    change(one)
    with pytest.raises(AdapterError, match=r"^[02]: .* a compiled graph it is in was switched"):
        y.backward()
