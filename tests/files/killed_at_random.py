"""Kills processes that save adapters of rank 2 and 4; prints what they left.

    python killed_at_random.py FOLDER

Meanwhile and afterwards the adapter is loaded: it must be one of the two, whole.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn

import quantlora
from quantlora.checkpoint.read import read_adapter

SECONDS = 4


def wrapped(r: int) -> nn.Module:
    torch.manual_seed(r)
    return quantlora.wrap(nn.Sequential(nn.Linear(16, 16)), r=r, init_lora_weights=False)


def start_saver(folder: Path, models: list[nn.Module]) -> int:
    child = os.fork()
    chance = random.Random(os.getpid())
    while child == 0:
        quantlora.save_adapter(chance.choice(models), folder)
    return child


def rank(folder: Path, models: list[nn.Module]) -> int:
    """Of the one model that has the values in ``folder``, all of them."""
    saved = read_adapter(folder)
    model = next(one for one in models if one[0].r["default"] == saved.config.r)
    for name, parameter in model[0].adapter_tensors("default").items():
        assert torch.equal(saved.tensors[f"base_model.model.0.{name}"], parameter)
    return saved.config.r


def main(folder: Path) -> dict[str, object]:
    models = [wrapped(2), wrapped(4)]
    quantlora.save_adapter(models[0], folder)
    states: dict[int, int] = {}
    kills, end = 0, time.monotonic() + SECONDS
    while time.monotonic() < end:
        savers = [start_saver(folder, models) for _ in range(2)]
        try:
            stop = time.monotonic() + random.uniform(0, 0.1)
            while time.monotonic() < stop:
                rank(folder, models)
        finally:
            for saver in savers:
                os.kill(saver, signal.SIGKILL)
                os.waitpid(saver, 0)
        kills += len(savers)
        found = rank(folder, models)
        states[found] = states.get(found, 0) + 1
    return {"kills": kills, "states": states}


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.fsync = lambda handle: None  # slow, and of no effect on a kill
    print(json.dumps(main(Path(sys.argv[1]) / "adapter")))
