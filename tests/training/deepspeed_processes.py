"""As ``two_processes.py``, by DeepSpeed's ZeRO-2 and ZeRO-3, where that is installed.

python deepspeed_processes.py FOLDER STRATEGY:BACKEND...
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import deepspeed
import torch.distributed as dist
from torch import nn

import quantlora
from tests.training.two_processes import (
    STEPS,
    batch,
    from_command_line,
    make_optimizer,
    mean,
    wrapped,
)


def config(stage: int) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
    }


def train(model: nn.Module, stage: int, part: slice) -> list[float]:
    optimizer = make_optimizer(model)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config(stage))
    ids, losses = batch()[part], []
    for _ in range(STEPS):
        loss = engine(input_ids=ids, labels=ids).loss
        engine.backward(loss)
        engine.step()
        losses.append(mean(loss.detach()))
    return losses


def both(rank: int, folder: Path, pairs: list[tuple[str, str]]) -> None:
    """What one of the two processes does; the first writes the losses."""
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    deepspeed.init_distributed(dist_backend="gloo", dist_init_required=False)
    for strategy, backend in pairs:
        place = folder / strategy / backend
        model = wrapped(backend)
        losses = train(model, int(strategy[-1]), slice(2 * rank, 2 * rank + 2))
        quantlora.save_adapter(model, place)
        if rank == 0:
            (place / "found-0.json").write_text(json.dumps({"losses": losses}))
    dist.destroy_process_group()


if __name__ == "__main__":
    from_command_line(both)
