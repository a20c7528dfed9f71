"""A wrapped model in the workers of a DataLoader, forked and spawned."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tests.tools.reliability.outcome import Outcome
from tests.tools.reliability.subjects import WIDTH, formats, wrapped

WORKERS = 2


class Features(Dataset[tuple[int, dict[str, Tensor]]]):
    """Outputs of one model in each format, computed where the item is fetched."""

    def __init__(self, count: int) -> None:
        torch.manual_seed(1)
        self.inputs = torch.randn(count, WIDTH)
        self.models = {name: wrapped(name).eval() for name in formats()}

    def __len__(self) -> int:
        return len(self.inputs)

    @torch.no_grad()
    def __getitem__(self, index: int) -> tuple[int, dict[str, Tensor]]:
        x = self.inputs[index]
        return index, {name: model(x[None])[0] for name, model in self.models.items()}


def workers(place: Path, count: int, chance: random.Random) -> Iterator[Outcome]:
    """What a worker computes is what the first process computes, bit for bit."""
    ways = ("fork", "spawn")
    share = max(1, count // (len(ways) * len(formats())))
    data = Features(share)
    alone = dict(data[index] for index in range(share))
    for way in ways:
        loader = DataLoader(
            data, batch_size=None, num_workers=WORKERS, multiprocessing_context=way, timeout=120
        )
        for index, found in loader:
            for name, features in found.items():
                right = torch.equal(features, alone[index][name])
                yield Outcome(f"{way}, {name}", "the same bits", "" if right else "other bits")
