"""Under ``torchrun`` or ``accelerate launch`` all processes train; the first speaks and writes."""

from __future__ import annotations

from typing import Any

import torch


def only_cpu() -> bool:
    """Whether there is no accelerator; libraries want to be told before they connect processes."""
    return not (torch.cuda.is_available() or torch.backends.mps.is_available())


def device() -> torch.device:
    """Where this process is going to train."""
    chosen: torch.device = _state().device
    return chosen


def is_first() -> bool:
    return bool(_state().is_main_process)


def count() -> int:
    return int(_state().num_processes)


def wait_for_all() -> None:
    """Go on when every process has come here; at once where there is only one."""
    _state().wait_for_everyone()


def _state() -> Any:
    from accelerate import PartialState

    return PartialState(cpu=only_cpu())


def least(value: int) -> int:
    """The least of the values that the processes come with."""
    from accelerate.utils import gather_object

    return int(min(gather_object([value])))
