"""What costs memory or time when a model is shared out, and need not be changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from quantlora.distributed.case import FSDP2, ZERO2, Case
from quantlora.distributed.findings import Finding
from quantlora.units import dtype_name

#: By whether the strategy shards.
_BUFFERS = {
    True: (
        "they are not cut apart, each process holds them whole.",
        "Plan the memory for it; adapters, gradients and optimizer states are shared out.",
    ),
    False: (
        "DDP sends them from the first process to all others before each forward.",
        "Switch that off, they never change: broadcast_buffers=False "
        "(ddp_broadcast_buffers=False in TrainingArguments).",
    ),
}


def _in_buffers(case: Case) -> Iterator[Finding]:
    """Packed weights that are buffers: whole on every process, and sent around by DDP."""
    if case.strategy == ZERO2:
        return
    held = [
        (path, layer)
        for path, layer, quantizer in case.packed
        if quantizer.packed_parameter(layer) is None
    ]
    size = sum(_bytes(layer.buffers()) for _, layer in held)
    if not held:
        return
    what, remedy = _BUFFERS[case.shards]
    yield Finding(
        f"{size / 1e6:,.1f} MB of packed weights are buffers: {what}",
        remedy,
        tuple(path for path, _ in held),
    )


def _left_whole_by_accelerate(case: Case) -> Iterator[Finding]:
    paths = tuple(path for path, codes in case.codes() if not codes.is_floating_point())
    if paths and case.strategy == FSDP2:
        dtype = case.mixed_precision or torch.float32
        yield Finding(
            "its packed weight is stored as integers, which accelerate (and so Trainer) leaves "
            "whole on each process; torch's fully_shard itself cuts it.",
            f"To have it cut, quantize with quant_storage=torch.{dtype_name(dtype)} "
            f"(bnb_4bit_quant_storage).",
            paths,
        )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


NOTES: tuple[Callable[[Case], Iterator[Finding]], ...] = (_in_buffers, _left_whole_by_accelerate)
