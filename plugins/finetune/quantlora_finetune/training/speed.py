"""How fast a training is: tokens per second, of the last step and of all."""

from __future__ import annotations

import time
from typing import Any

from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Speed(TrainerCallback):
    """Counts tokens and takes the time, without what Trainer does before the first step.

    Args:
        processes: those that train side by side, each with as many tokens as this one.
    """

    def __init__(self, processes: int = 1) -> None:
        self.processes = processes
        self.tokens = 0
        self.seconds = 0.0
        self.of_last_step = 0.0
        self._tokens: list[Tensor] = []
        self._began = self._step_began = 0.0

    @property
    def of_all(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def count(self, tokens: Tensor) -> None:
        """Add the tokens of a batch; the number stays on the device until the step is over."""
        self._tokens.append(tokens)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._began = time.perf_counter()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._step_began = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        tokens = self.processes * sum(int(count) for count in self._tokens)
        now = time.perf_counter()
        self._tokens.clear()
        self.tokens += tokens
        self.seconds = now - self._began
        self.of_last_step = tokens / (now - self._step_began)
