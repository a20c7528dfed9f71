"""Threads that call one wrapped model at the same time."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.tools.reliability.outcome import Outcome
from tests.tools.reliability.subjects import WIDTH, formats, wrapped

THREADS = 8


def threads(place: Path, count: int, chance: random.Random) -> Iterator[Outcome]:
    """Each call gives the bits that it gives alone: forward, and forward with gradients."""
    torch.manual_seed(chance.getrandbits(32))
    kinds = {"forward": _forward, "forward and backward": _gradients}
    cases = [(name, kind) for name in formats() for kind in kinds]
    share = max(1, -(-count // len(cases)))
    for name, kind in cases:
        model = wrapped(name).train(kind != "forward")
        inputs = [torch.randn(5, WIDTH) for _ in range(share)]
        for right in together(kinds[kind], model, inputs):
            yield Outcome(f"{name}, {kind}", "the same bits", "" if right else "other bits")


def together(
    work: Callable[[nn.Module, Tensor], list[Tensor]], model: nn.Module, inputs: list[Tensor]
) -> list[bool]:
    """For each input whether threads get for it what one call after the other gets."""
    alone = [work(model, x) for x in inputs]
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda x: work(model, x), inputs))
    return [
        all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        for one, other in zip(alone, found, strict=True)
    ]


def _forward(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [model(x)]


def _gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Asked for, not added to ``.grad``, which belongs to one thread at a time."""
    x = x.clone().requires_grad_()
    trained = [p for p in model.parameters() if p.requires_grad]
    return list(torch.autograd.grad(model(x).square().sum(), [x, *trained]))
