"""`StopOnNaN`: a training that diverges ends before the step that would spoil its weights."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from quantlora.errors import NonFiniteError
from quantlora.training.gradient_watch import BatchWatch, GradientWatch

#: For Trainer in general; a command that trains may name its own options instead.
REMEDY = (
    "Use a lower learning rate, a longer warm-up or a smaller max_grad_norm, and bfloat16 or "
    "float32 in place of float16. If the loss was not finite to begin with, look at that step's "
    "data and at the weights."
)
#: Steps in a row that float16's loss scaling may skip while it looks for its scale: it begins at
#: 2^16 and is halved each time.
_SCALER_STEPS = 20


@dataclass(frozen=True)
class Divergence:
    """What one process saw: the loss, the first bad gradient, the first bad output."""

    process: int
    loss: float | None
    parameter: str
    module: str | None

    def __str__(self) -> str:
        where = f" (process {self.process})" if self.process else ""
        text = f"the gradient of {self.parameter} is not finite, the first one in backward{where}"
        text += "" if self.loss is None else f"; the loss was {self.loss:g}"
        return text + (f", first not finite in forward: {self.module}" if self.module else "")


class StopOnNaN(TrainerCallback):
    """Stops ``transformers.Trainer``, and TRL's trainers, at a gradient that is NaN or infinite.

        Trainer(model, arguments, train_dataset=data, callbacks=[quantlora.StopOnNaN()])

    It looks after backward and before the optimizer's step. So the weights, and every checkpoint,
    are those of steps whose gradients were finite. Under DDP all processes stop together.

    Args:
        remedy: the end of the message: what to do.

    Raises:
        NonFiniteError: from ``trainer.train()``: the step, the parameter whose gradient was the
            first in backward not to be finite, the loss, where it was not finite the first module
            in forward whose output was not, and the last checkpoint.
    """

    def __init__(self, remedy: str = REMEDY) -> None:
        self.remedy = remedy
        self._skipped = 0

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **_: Any,
    ) -> None:
        assert model is not None  # Trainer always gives it
        self._gradients, self._batches, self._skipped = GradientWatch(model), BatchWatch(model), 0

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        found = _anywhere(self._divergence())
        self._batches.forget()
        self._skipped = 0 if found is None else self._skipped + 1
        if found is not None and self._skipped >= (_SCALER_STEPS if args.fp16 else 1):
            self._close()
            raise NonFiniteError(self._message(found, args, state))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._close()

    def _divergence(self) -> Divergence | None:
        parameter = self._gradients.first()
        if parameter is None:
            return None
        loss = None if self._batches.loss is None else float(self._batches.loss)
        module = self._batches.first_module()
        return Divergence(_process(), loss, parameter, module)

    def _message(self, found: Divergence, args: TrainingArguments, state: TrainerState) -> str:
        folder = args.output_dir or ""
        find: Callable[[str], str | None] = get_last_checkpoint  # untyped upstream
        last = find(folder) if os.path.isdir(folder) else None
        kept = f"the last checkpoint is {last}" if last else "there is no checkpoint yet"
        return (
            f"step {state.global_step + 1}: {found}. Stopped before the optimizer used it: the "
            f"weights are those after step {state.global_step}; {kept}. {self.remedy}"
        )

    def _close(self) -> None:
        self._gradients.close()
        self._batches.close()


def _process() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def _anywhere(found: Divergence | None) -> Divergence | None:
    """The first process's finding that has one: all must stop, or the others wait for ever."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return found
    everywhere: list[Divergence | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everywhere, found)
    return next((found for found in everywhere if found is not None), None)
