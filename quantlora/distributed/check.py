"""`check_distributed`: what to change before a wrapped model is trained by several processes."""

from __future__ import annotations

import torch
from torch import nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.distributed.case import FSDP2, STRATEGIES, Case
from quantlora.distributed.findings import DistributedReport
from quantlora.distributed.notes import NOTES
from quantlora.distributed.problems import PROBLEMS
from quantlora.errors import ConfigError


def check_distributed(
    model: nn.Module, strategy: str = FSDP2, *, mixed_precision: torch.dtype | None = None
) -> DistributedReport:
    """Say what has to be set before ``model`` is shared out; nothing is changed.

    Args:
        model: a wrapped model, before `fully_shard`, `DistributedDataParallel` or
            ``accelerator.prepare``.
        strategy: ``"ddp"``, ``"fsdp2"``, or DeepSpeed's ``"zero2"`` and ``"zero3"``.
        mixed_precision: the dtype that the strategy casts parameters to (FSDP2's
            ``MixedPrecisionPolicy.param_dtype``, DeepSpeed's ``bf16``), if any.

    Raises:
        ConfigError: an unknown strategy. `DistributedReport.require` raises what was found.
    """
    if strategy not in STRATEGIES:
        raise ConfigError(f"strategy must be one of {', '.join(STRATEGIES)}, got {strategy!r}.")
    case = Case(AdaptedModel(model), strategy, mixed_precision)
    problems = [finding for check in PROBLEMS for finding in check(case)]
    notes = [finding for check in NOTES for finding in check(case)]
    return DistributedReport(strategy, tuple(problems), tuple(notes))
