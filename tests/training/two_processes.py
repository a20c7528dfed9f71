"""Trains tiny models in one process and in two (gloo), by DDP and FSDP2, and saves what comes out.

    python two_processes.py FOLDER STRATEGY:BACKEND...

Prints, for each pair, how far the two are apart. The test that runs it holds the limits.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.nn.parallel import DistributedDataParallel

import quantlora
from quantlora.testing.models import tiny_llama

#: What each process runs: its rank, the folder, and pairs of strategy and backend.
Both = Callable[[int, Path, list[tuple[str, str]]], None]

STEPS = 4
WEIGHTS = "adapter_model.safetensors"
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


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW whose eps is above the rounding of a gradient, which must not become a step."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=0.01, eps=1e-6)


def train(model: nn.Module, part: slice) -> list[float]:
    """The loss of each step over all processes; each takes its ``part`` of the batch."""
    optimizer = make_optimizer(model)
    losses = []
    ids = batch()[part]
    for _ in range(STEPS):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(mean(loss.detach()))
    return losses


def mean(loss: Tensor) -> float:
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
        found = {"losses": losses, **(shards(model, place) if strategy == "fsdp2" else {})}
        (place / f"found-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def shards(model: nn.Module, place: Path) -> dict[str, str]:
    """Saves as Trainer does, from a gathered state; the errors of what cannot be done."""
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, cpu_offload=True)
    state = get_model_state_dict(model, options=options)
    for folder in ("given", "checkpoint-4"):
        first = dist.get_rank() == 0
        model.save_pretrained(
            place / folder, state_dict=state if first else {}, is_main_process=first
        )
    return {
        "merge": error_of(lambda: quantlora.merge(model)),
        "partial": error_of(lambda: quantlora.save_adapter(model, place / "none", state_dict={})),
    }


def error_of(call: Callable[[], object]) -> str:
    try:
        call()
    except quantlora.QuantloraError as error:
        return str(error)
    return ""


def compared(folder: Path, strategy: str, backend: str, losses: list[float]) -> dict[str, Any]:
    place = folder / strategy / backend
    found = json.loads((place / "found-0.json").read_text())
    wanted = load_file(folder / "single" / backend / WEIGHTS)
    saved = {str(one.parent.relative_to(place)): load_file(one) for one in place.rglob(WEIGHTS)}
    assert all(one.keys() == wanted.keys() for one in saved.values())
    return {
        "loss": max(abs(a - b) for a, b in zip(found["losses"], losses, strict=True)),
        "adapters": {name: distance(one, wanted) for name, one in saved.items()},
        "learned": losses[0] - losses[-1],
        "errors": {name: text for name, text in found.items() if name != "losses"},
    }


def distance(saved: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    assert {key: t.shape for key, t in saved.items()} == {k: t.shape for k, t in wanted.items()}
    return max(float((saved[key] - wanted[key]).abs().max()) for key in wanted)


def main(both: Both, folder: Path, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """What ``both``, run in each of two processes, has done otherwise than a single one."""
    alone = {one: single(one, folder / "single" / one) for one in {one for _, one in pairs}}
    # Forked, so that the libraries are imported once.
    processes.start_processes(both, (folder, pairs), nprocs=2, start_method="fork")
    return {f"{s}:{b}": compared(folder, s, b, alone[b]) for s, b in pairs}


def from_command_line(both: Both) -> None:
    """``FOLDER STRATEGY:BACKEND...``: prints the comparison as JSON."""
    chosen = [(strategy, backend) for strategy, backend in (a.split(":") for a in sys.argv[2:])]
    print(json.dumps(main(both, Path(sys.argv[1]), chosen)))


if __name__ == "__main__":
    from_command_line(both)
