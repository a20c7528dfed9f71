"""The output folder: claimed by one run, resumed by the same, never written over.

run.json      the options and the first measurement, from the moment the training begins
checkpoints/  see `checkpoints`
report.json   at the end, with the adapter, loss.png and README.md
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantlora.errors import FinetuneError
from quantlora.finetune.checkpoints import last_checkpoint, step_of
from quantlora.finetune.limits import existing
from quantlora.finetune.option_fields import option_name
from quantlora.finetune.options import FinetuneOptions

RUN, REPORT, CHECKPOINTS = "run.json", "report.json", "checkpoints"

#: What may be changed when a run is resumed.
_CHANGEABLE = {"output", "resume", "steps", "save_every", "eval_examples"}


@dataclass
class RunFolder:
    """A folder, and what ``run.json`` in it says (nothing for a new run)."""

    path: Path
    record: dict[str, Any]

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    @property
    def checkpoint(self) -> Path | None:
        """The newest complete checkpoint."""
        return last_checkpoint(self.checkpoints)

    @property
    def steps_done(self) -> int:
        """Steps that are safe in a checkpoint."""
        checkpoint = self.checkpoint
        return step_of(checkpoint) if checkpoint else 0

    @property
    def has_begun(self) -> bool:
        return (self.path / RUN).is_file()

    @property
    def is_finished(self) -> bool:
        return (self.path / REPORT).is_file()

    def begin(self, **record: Any) -> None:
        """Claim the folder: from here on it holds a run."""
        self.record |= record
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / RUN, self.record)

    def check_same_data(self, fingerprint: str) -> None:
        """Raise `FinetuneError` where a resumed run would see other examples."""
        if self.record and self.record["data"] != fingerprint:
            raise FinetuneError(
                f"{self.path}: the data has changed since this run was started, so it cannot be "
                f"resumed. Bring back the old data, or start anew with another --output."
            )


def open_run(options: FinetuneOptions, given: Collection[str]) -> tuple[RunFolder, FinetuneOptions]:
    """The folder of the run, and its options: resumed, those it was started with.

    Args:
        given: names of the options that the user gave, to notice contradictions.

    Raises:
        FinetuneError: the folder holds something else, or nothing to resume, or other options.
    """
    run = RunFolder(options.output, _read(options.output / RUN))
    if not options.resume:
        _check_free(run)
        return run, dataclasses.replace(options, **_absolute(options))
    if not run.record:
        raise FinetuneError(
            f"{run.path} holds no run to resume: --output names the folder of the run; "
            f"without --resume a new one is started."
        )
    return run, _resumed(run, options, given)


def _check_free(run: RunFolder) -> None:
    if run.path.exists() and not run.path.is_dir():
        raise FinetuneError(f"--output {run.path} is a file: name a folder.")
    if run.has_begun:
        state = "is finished" if run.is_finished else f"stopped after {run.steps_done} steps"
        raise FinetuneError(
            f"{run.path} holds a run already; it {state}. Go on with it by --resume, or name "
            f"another folder with --output."
        )
    if run.path.is_dir() and any(run.path.iterdir()):
        raise FinetuneError(f"{run.path} is not empty: name another folder with --output.")
    if not os.access(existing(run.path), os.W_OK):
        raise FinetuneError(f"--output {run.path} cannot be written to: name another folder.")


def _resumed(run: RunFolder, options: FinetuneOptions, given: Collection[str]) -> FinetuneOptions:
    started = FinetuneOptions.from_json(run.record["options"])
    wanted = dataclasses.replace(options, **_absolute(options))
    for name in sorted(set(given) - _CHANGEABLE):
        old, new = getattr(started, name), getattr(wanted, name)
        if old != new:
            raise FinetuneError(
                f"{run.path} was started with {option_name(name)} {old}, not {new}. A resumed run "
                f"keeps its options: leave it out, or start anew with another --output."
            )
    changed = {name: getattr(options, name) for name in _CHANGEABLE & set(given)}
    return dataclasses.replace(started, **changed)


def _absolute(options: FinetuneOptions) -> dict[str, Any]:
    """Paths that still hold in another working directory."""
    named = {"model": options.model, "data": options.data, "reference": options.reference}
    return {k: str(Path(v).expanduser().resolve()) for k, v in named.items() if v and _exists(v)}


def _exists(place: str) -> bool:
    return Path(place).expanduser().exists()


def _read(file: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(file.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise FinetuneError(f"{file} cannot be read: {error}. Use another --output.") from error
    return record


def write_json(file: Path, content: Any) -> None:
    """Write ``content`` so that a kill leaves the old file or the new one."""
    unfinished = file.with_name(f".{file.name}.unfinished")
    unfinished.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    os.replace(unfinished, file)
