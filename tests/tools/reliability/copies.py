"""Copies of a wrapped model: `copy.deepcopy`, `pickle` and `torch.save`, in every format."""

from __future__ import annotations

import copy
import io
import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

import quantlora
from tests.tools.reliability.outcome import Outcome
from tests.tools.reliability.subjects import WIDTH, formats, wrapped

#: What the model has been through when it is copied.
USES: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "new": lambda model, x: None,
    "after a forward without gradients": lambda model, x: _generate(model, x),
    "after a training step": lambda model, x: model.train()(x).sum().backward(),
    "merged": lambda model, x: quantlora.merge(model, mode="dequantize"),
    "with a second adapter": lambda model, x: quantlora.wrap(model, adapter_name="b", r=2),
}


def _through_file(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded: nn.Module = torch.load(buffer, weights_only=False)
    return loaded


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": _through_file,
}


def copies(place: Path, count: int, chance: random.Random) -> Iterator[Outcome]:
    """A copy computes the same bits, shares no memory, and can be trained and merged."""
    cases = [(name, way, use) for name in formats() for way in WAYS for use in USES]
    for number in range(count):
        name, way, use = cases[number % len(cases)]
        try:
            fault = copied(wrapped(name), WAYS[way], USES[use])
        except Exception as error:
            fault = f"{use}: {type(error).__name__}: {error}"
        yield Outcome(f"{way}, {name}", "a whole copy", fault)


def copied(
    model: nn.Module,
    way: Callable[[nn.Module], nn.Module],
    use: Callable[[nn.Module, Tensor], object],
) -> str:
    """What is wrong with a copy."""
    x = torch.randn(3, WIDTH)
    use(model, x)
    before = model(x)
    twin = way(model)
    if not torch.equal(twin(x), before):
        return "other outputs"
    if _memory(model) & _memory(twin):
        return "shared memory"
    with torch.no_grad():
        for parameter in twin.parameters():
            if parameter.is_floating_point():
                parameter.zero_()
    return "" if torch.equal(model(x), before) else "the copy has changed the original"


@torch.no_grad()
def _generate(model: nn.Module, x: Tensor) -> None:
    model.eval()(x)


def _memory(model: nn.Module) -> set[int]:
    tensors = (*model.parameters(), *model.buffers())
    return {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel()}
