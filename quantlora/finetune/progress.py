"""The progress bar: step, loss, tokens per second, time left. Lines where there is no terminal."""

from __future__ import annotations

import math
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from quantlora.errors import FinetuneError

_BAR = (
    TextColumn("training"),
    BarColumn(),
    MofNCompleteColumn(),
    TextColumn("loss {task.fields[loss]}"),
    TextColumn("{task.fields[speed]} tokens/s"),
    TimeRemainingColumn(compact=True),
)


#: Lines for a whole training, in a log file.
_LINES = 12


class ShowProgress(TrainerCallback):
    """Draws the bar, and measures the speed without what Trainer does before the first step."""

    def __init__(self, console: Console, tokens_per_step: int) -> None:
        self.bar = Progress(*_BAR, console=console, disable=not console.is_terminal)
        self.console = console
        self.tokens_per_step = tokens_per_step
        self.began = 0.0
        self.first = 0
        self.seconds = 0.0
        self.steps = 0

    @property
    def tokens_per_second(self) -> float:
        return self.steps * self.tokens_per_step / self.seconds if self.seconds else 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.began, self.first = time.perf_counter(), state.global_step
        self.bar.start()
        self.task = self.bar.add_task(
            "training", total=state.max_steps, completed=self.first, loss="-", speed="-"
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.seconds = time.perf_counter() - self.began
        self.steps = state.global_step - self.first
        speed = f"{self.tokens_per_second:.0f}"
        self.bar.update(self.task, completed=state.global_step, speed=speed)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        if not math.isfinite(float(loss)):
            raise FinetuneError(
                f"the loss is {loss} after step {state.global_step}: the training has diverged. "
                f"Use a lower --lr or a longer --warmup, or --dtype float32."
            )
        self.bar.update(self.task, loss=f"{float(loss):.3f}")
        if not self.console.is_terminal:
            self._write_line(state, float(loss))

    def _write_line(self, state: TrainerState, loss: float) -> None:
        if state.global_step % max(1, state.max_steps // _LINES) == 0:
            self.console.print(
                f"step {state.global_step}/{state.max_steps}, loss {loss:.3f}, "
                f"{self.tokens_per_second:.0f} tokens/s"
            )

    def stop(self) -> None:
        """Leave the bar as it stands; also after an interruption."""
        self.bar.stop()
