"""Checkpoints that a kill cannot spoil: only those with a mark, written last, count."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from quantlora.errors import FinetuneError

_PREFIX = "checkpoint-"
_COMPLETE = "complete"


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(_PREFIX))


def last_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint with the most steps."""
    return max(_checkpoints(folder, complete=True), key=step_of, default=None)


def check_last(folder: Path) -> None:
    """Raise `FinetuneError` where a file of the last checkpoint is cut off or damaged.

    The checkpoint before it is named: to go back is the user's choice.
    """
    last = last_checkpoint(folder)
    if last is None:
        return
    for file in sorted(last.iterdir()):
        opens = _OPENS.get(file.suffix)
        if opens is not None and not opens(file):
            raise FinetuneError(
                f"{file} is damaged: a disk has failed, or a copy is not whole. Copy it again, or "
                f"remove {last}: then --resume {_next_start(folder, last)}."
            )


def _next_start(folder: Path, without: Path) -> str:
    earlier = [
        checkpoint for checkpoint in _checkpoints(folder, complete=True) if checkpoint != without
    ]
    return f"goes on after step {max(map(step_of, earlier))}" if earlier else "begins at step 0"


def _is_safetensors(file: Path) -> bool:
    try:
        with safe_open(str(file), "pt"):
            return True
    except (SafetensorError, OSError):
        return False


def _is_json(file: Path) -> bool:
    try:
        json.loads(file.read_bytes())
    except ValueError:
        return False
    return True


#: Whether a file of that ending is whole. torch's files are archives, whose list is at the end.
_OPENS: dict[str, Callable[[Path], bool]] = {
    ".safetensors": _is_safetensors,
    ".json": _is_json,
    ".bin": zipfile.is_zipfile,
    ".pt": zipfile.is_zipfile,
    ".pth": zipfile.is_zipfile,
}


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
