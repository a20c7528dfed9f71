"""Trains tiny models in one process and in two (gloo), by DDP and FSDP2, and saves what comes out.

    python two_processes.py FOLDER STRATEGY:BACKEND...

Prints, for each pair, how far the two are apart. The test that runs it holds the limits.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import quantlora
from quantlora.testing.models import tiny_llama

STEPS = 4
OPTIONS = {"bitsandbytes_4bit_float32": {"quant_storage": torch.float32}}


def wrapped(backend: str) -> nn.Module:
    """The same model in every process."""
    model = tiny_llama()
    name = backend.removesuffix("_float32")
    options = OPTIONS.get(backend)
    torch.manual_seed(1)
    return quantlora.wrap(model, backend=name, r=4, quantize_options=options).train()


def batch() -> Tensor:
    """Four samples of equal length."""
    return torch.randint(3, 60, (4, 12), generator=torch.Generator().manual_seed(2))


def shared(model: nn.Module, strategy: str) -> nn.Module:
    """``model`` as the strategy has it; "single" as it is."""
    if strategy == "ddp":
        return DistributedDataParallel(model)
    if strategy == "fsdp2":
        from torch.distributed.fsdp import fully_shard

        for layer in model.model.layers:
            fully_shard(layer)
        return fully_shard(model)
    return model


def train(model: nn.Module, part: slice) -> list[float]:
    """The loss of each step over all processes; each takes its ``part`` of the batch."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    losses = []
    ids = batch()[part]
    for _ in range(STEPS):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(_mean(loss.detach()))
    return losses


def _mean(loss: Tensor) -> float:
    if dist.is_initialized():
        dist.all_reduce(loss)
        loss = loss / dist.get_world_size()
    return float(loss)


def single(backend: str, folder: Path) -> list[float]:
    model = wrapped(backend)
    losses = train(model, slice(None))
    quantlora.save_adapter(model, folder)
    return losses


def both(rank: int, folder: Path, pairs: list[tuple[str, str]]) -> None:
    """What one of the two processes does; the first writes the losses."""
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    part = slice(2 * rank, 2 * rank + 2)
    for strategy, backend in pairs:
        place = folder / strategy / backend
        model = wrapped(backend)
        losses = train(shared(model, strategy), part)
        quantlora.save_adapter(model, place)
        found = {"losses": losses, "merge": merge_error(model) if strategy == "fsdp2" else ""}
        (place / f"found-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def merge_error(model: nn.Module) -> str:
    try:
        quantlora.merge(model)
    except quantlora.MergeError as error:
        return str(error)
    return ""


def compared(folder: Path, strategy: str, backend: str, losses: list[float]) -> dict[str, Any]:
    place = folder / strategy / backend
    found = json.loads((place / "found-0.json").read_text())
    saved, wanted = (
        load_file(one / "adapter_model.safetensors") for one in (place, folder / "single" / backend)
    )
    return {
        "loss": max(abs(a - b) for a, b in zip(found["losses"], losses, strict=True)),
        "adapter": max(float((saved[key] - wanted[key]).abs().max()) for key in wanted),
        "shapes": {k: list(t.shape) for k, t in saved.items()}
        == {k: list(t.shape) for k, t in wanted.items()},
        "learned": losses[0] - losses[-1],
        "merge": found["merge"],
    }


def main(folder: Path, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    alone = {one: single(one, folder / "single" / one) for one in {one for _, one in pairs}}
    # Forked, so that the libraries are imported once.
    processes.start_processes(both, (folder, pairs), nprocs=2, start_method="fork")
    return {f"{s}:{b}": compared(folder, s, b, alone[b]) for s, b in pairs}


if __name__ == "__main__":
    chosen = [tuple(one.split(":")) for one in sys.argv[2:]]
    print(json.dumps(main(Path(sys.argv[1]), chosen)))
