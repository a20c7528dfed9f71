"""Checkpoints that a kill cannot spoil: only those with a mark, written last, count."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

_PREFIX = "checkpoint-"
_COMPLETE = "complete"


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(_PREFIX))


def last_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint with the most steps."""
    return max(_checkpoints(folder, complete=True), key=step_of, default=None)


def remove_incomplete(folder: Path) -> None:
    """Remove what a kill in the middle of saving has left."""
    for checkpoint in _checkpoints(folder, complete=False):
        shutil.rmtree(checkpoint)


def _checkpoints(folder: Path, complete: bool) -> list[Path]:
    found = [p for p in folder.glob(f"{_PREFIX}*") if p.name.removeprefix(_PREFIX).isdigit()]
    return [p for p in found if (p / _COMPLETE).is_file() == complete]


class MarkComplete(TrainerCallback):
    """Marks a checkpoint once Trainer has written all of it.

    Trainer deletes older ones before: keep two, so that a complete one is always there.
    """

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.is_world_process_zero:
            (Path(args.output_dir or ".") / f"{_PREFIX}{state.global_step}" / _COMPLETE).touch()
