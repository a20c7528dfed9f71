"""``--batch-size auto``: as many examples as the memory prediction lets fit."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from quantlora import memory_estimate
from quantlora_finetune.options.choices import TrainerName
from quantlora_finetune.options.finetune_options import FinetuneOptions
from quantlora_finetune.run import processes
from quantlora_finetune.training.optimizers import optimizer_bytes_of

#: More examples make a step no faster, and another training.
_LARGEST = 64
#: Of what is free; the rest is for kernels' own memory and an allocator's gaps.
_SHARE = 0.8
#: Where a container's limit is told, in control groups' second version and first.
_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


@dataclass(frozen=True)
class FoundBatchSize:
    """Examples in a forward, the bytes predicted for training with them, and those free."""

    batch_size: int
    needed: int
    free: int


def fitting_batch_size(
    model: nn.Module, options: FinetuneOptions, length: int, rows: int
) -> FoundBatchSize:
    """The largest power of two that fits into the memory of every process.

    Args:
        length: tokens of the longest row.
        rows: rows there are to train on.
    """
    fixed, activations = _needs(model, options, length)
    free = processes.least(free_bytes(processes.device()))
    size = 1
    while 2 * size <= min(_LARGEST, rows) and fixed + 2 * size * activations <= _SHARE * free:
        size *= 2
    return FoundBatchSize(size, round(fixed + size * activations), free)


def sequences_in_row(options: FinetuneOptions) -> int:
    """What the model sees of a row at once: both answers of a pair, or one sequence."""
    return 2 if options.trainer in (TrainerName.DPO, TrainerName.ORPO) else 1


def longer_by(options: FinetuneOptions) -> int:
    """Tokens that are generated behind a row's own."""
    return options.completion_length if options.trainer is TrainerName.GRPO else 0


def _needs(model: nn.Module, options: FinetuneOptions, length: int) -> tuple[float, float]:
    """Bytes that training takes besides the model: at any batch size, and for each example."""
    sizes, found = (_LARGEST // 2, _LARGEST), list[int]()
    for size in sizes:
        use = memory_estimate(
            model,
            batch_size=size * sequences_in_row(options),
            length=length + longer_by(options),
            chunked_loss=options.trainer is TrainerName.TRANSFORMERS,
        )
        found.append(use.activations)
    each = max(1.0, (found[1] - found[0]) / (sizes[1] - sizes[0]))
    fixed = max(0.0, found[0] - each * sizes[0])
    return fixed + use.gradients + optimizer_bytes_of(model, options), each


def free_bytes(device: torch.device) -> int:
    """Bytes that are free on ``device``; on a CPU, this process's part of them."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = [_free_in_system(), *(left for left in map(_left_of, _LIMITS) if left is not None)]
    return min(found) // processes.count()


def _free_in_system() -> int:
    try:
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    # No Linux: half of what is built in.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _left_of(files: tuple[str, str]) -> int | None:
    try:
        limit, used = (int(Path(file).read_text("ascii")) for file in files)
    except (OSError, ValueError):  # no such group, or "max"
        return None
    return max(0, limit - used)
