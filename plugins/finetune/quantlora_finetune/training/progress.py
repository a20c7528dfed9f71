"""The progress bar: step, loss, tokens per second, time left. Lines where there is no terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from quantlora_finetune.training.speed import Speed

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
    """Draws the bar; ``speed`` is a callback before this one."""

    def __init__(self, console: Console, speed: Speed) -> None:
        self.bar = Progress(*_BAR, console=console, disable=not console.is_terminal)
        self.console = console
        self.speed = speed

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.bar.start()
        self.task = self.bar.add_task(
            "training", total=state.max_steps, completed=state.global_step, loss="-", speed="-"
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.bar.update(self.task, completed=state.global_step, speed=f"{self.speed.of_all:.0f}")

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
        self.bar.update(self.task, loss=f"{float(loss):.3f}")
        if not self.console.is_terminal:
            self._write_line(state, float(loss))

    def _write_line(self, state: TrainerState, loss: float) -> None:
        if state.global_step % max(1, state.max_steps // _LINES) == 0:
            self.console.print(
                f"step {state.global_step}/{state.max_steps}, loss {loss:.3f}, "
                f"{self.speed.of_all:.0f} tokens/s"
            )

    def stop(self) -> None:
        """Leave the bar as it stands; also after an interruption."""
        self.bar.stop()
