"""A mixed batch is taken apart and put together once, whatever the number of adapters."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import quantlora
from quantlora.operations import reference

NAMES = tuple(f"a{i}" for i in range(6))
ORDERS = {
    "in order": NAMES,
    "mixed up": ("a3", "a0", "a5", "a1", "a4", "a2"),
    "twice": ("a1", "a0", "a1", "a0"),
    "with the base": ("a2", "__base__", "a1", "__base__", "a2"),
    "the base alone": ("__base__", "__base__"),
}
LAYERS: dict[str, Any] = {
    "linear": (lambda: nn.Linear(8, 6), lambda n: torch.randn(n, 3, 8)),
    "convolution": (lambda: nn.Conv1d(8, 6, 3), lambda n: torch.randn(n, 8, 5)),
    "embedding": (lambda: nn.Embedding(9, 6), lambda n: torch.randint(9, (n, 3))),
}


class Ops(TorchDispatchMode):
    """Counts the operations that run, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def adapted(kind: str = "linear", **fields: Any) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(LAYERS[kind][0]())
    fields = {"r": 2, "target_modules": ["0"], "init_lora_weights": False} | fields
    for name in NAMES:
        quantlora.wrap(model, adapter_name=name, **fields)
    return model.eval()


def one_by_one(model: nn.Module, x: Tensor, names: tuple[str, ...]) -> Tensor:
    outputs = []
    for sample, name in zip(x, names, strict=True):
        if name == "__base__":
            with quantlora.adapters_disabled(model):
                outputs.append(model(sample[None]))
        else:
            quantlora.set_adapter(model, name)
            outputs.append(model(sample[None]))
    return torch.cat(outputs)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("kind", "fields"),
    [(kind, {}) for kind in LAYERS]
    + [("linear", {"use_dora": True}), ("linear", {"lora_bias": True})],
    ids=lambda value: str(value),
)
def test_each_sample_gets_what_it_gets_alone(
    kind: str, fields: dict[str, Any], order: str, gradients: bool
) -> None:
    model, names = adapted(kind, **fields), ORDERS[order]
    x = LAYERS[kind][1](len(names))
    with torch.set_grad_enabled(gradients):
        with quantlora.mixed_batch(model, names):
            found = model(x)
        assert reference.relative(found, one_by_one(model, x, names).double()) < 1e-6


@pytest.mark.parametrize("order", ["in order", "mixed up"])
def test_gradients_reach_each_adapter_from_its_own_samples(order: str) -> None:
    model, names = adapted(), ORDERS[order]
    x = torch.randn(len(names), 3, 8)
    model.requires_grad_(True)
    with quantlora.mixed_batch(model, names):
        model(x).square().sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if "lora_" in name}
    model.zero_grad()
    for i, name in enumerate(names):
        quantlora.set_adapter(model, name)
        model(x[i : i + 1]).square().sum().backward()
    wanted = {name: p.grad for name, p in model.named_parameters() if name in found}
    assert all(torch.allclose(found[name], wanted[name], atol=1e-6) for name in found)


@pytest.mark.parametrize("order", ["in order", "mixed up"])
def test_no_copy_of_the_batch_for_each_adapter(order: str) -> None:
    """In forward and backward; 64 adapters would copy it 64 times."""
    model, ops = adapted(), Ops()
    model.requires_grad_(True)
    with quantlora.mixed_batch(model, ORDERS[order]), ops:
        model(torch.randn(6, 3, 8, requires_grad=True)).sum().backward()
    whole = ("index_select", "index_add", "index_add_", "slice_backward", "select_backward")
    assert sum(ops.counts[name] for name in whole) <= 6
