"""Making a parameter whole that FSDP2 or DeepSpeed ZeRO-3 has cut apart.

Each process holds a piece. Gathering is a collective: every process must come here, in the same
order, or the others wait for ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from quantlora.adapters.adapter_modules import adapter_containers, frozen_modules


def is_shard(tensor: Tensor) -> bool:
    """Whether this process holds only a piece of ``tensor``."""
    return _is_dtensor(tensor) or hasattr(tensor, "ds_id")


def whole(tensor: Tensor) -> Tensor:
    """``tensor`` with all its values, detached, on every process."""
    if _is_dtensor(tensor):
        dtensor: Any = tensor.detach()
        full: Tensor = dtensor.full_tensor()
        return full
    return _zero3_whole(tensor) if is_shard(tensor) else tensor.detach()


@contextmanager
def one_writes(model: nn.Module, state_dict: Mapping[str, Tensor] | None) -> Iterator[bool]:
    """Whether this process is to write what it has, and at the end all have waited for that one.

    Without shards, or with a ``state_dict`` that somebody has gathered, each caller writes.
    """
    together = state_dict is None and any(map(is_shard, _parameters(model)))
    try:
        yield not together or torch.distributed.get_rank() == 0
    finally:
        if together:
            torch.distributed.barrier()


def _parameters(model: nn.Module) -> Iterator[Tensor]:
    """Those of the base, and of one adapter for hundreds that are cut apart together."""
    for _, module in frozen_modules(model):
        yield from module.parameters(recurse=False)
        for container in adapter_containers(module):
            yield from islice(container.parameters(), 1)


def _is_dtensor(tensor: Tensor) -> bool:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False  # importing DTensor costs half a second
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def _zero3_whole(tensor: Tensor) -> Tensor:
    """ZeRO-3 marks its parameters with an id and leaves them empty between uses."""
    import deepspeed

    with deepspeed.zero.GatheredParameters([tensor]):
        return tensor.detach().clone()
