"""The output folder: claimed by one run, resumed by the same, never written over.

run.json      the options and the first measurement, from the moment the training begins
checkpoints/  see `checkpoints`
tensorboard/  what --report-to tensorboard reads
report.json   at the end, with the adapter, report.html, loss.png and README.md
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantlora import write_file
from quantlora.errors import FinetuneError
from quantlora_finetune.training.checkpoints import last_checkpoint, step_of

RUN, REPORT, PAGE = "run.json", "report.json", "report.html"
#: Where Transformers looks for the chat template of a tokenizer.
TEMPLATE = "chat_template.jinja"
CHECKPOINTS = "checkpoints"


@dataclass
class RunFolder:
    """A folder, and what ``run.json`` in it says (nothing for a new run)."""

    path: Path
    record: dict[str, Any]

    @classmethod
    def at(cls, path: Path) -> RunFolder:
        return cls(path, _read(path / RUN))

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

    @property
    def holds_others(self) -> bool:
        """Whether something is in the folder that no run has put there.

        A run that is killed while it begins leaves a part of its record.
        """
        begun = f".{RUN}.partial"
        return self.path.is_dir() and any(
            not path.name.startswith(begun) for path in self.path.iterdir()
        )

    def begin(self, **record: Any) -> None:
        """Claim the folder: from here on it holds a run."""
        is_new = "options" not in self.record
        self.record |= record
        try:
            write_json(self.path / RUN, self.record, replace=not is_new)
        except FileExistsError as error:
            raise FinetuneError(
                f"{self.path} has been taken by another run meanwhile: name another folder with "
                f"--output."
            ) from error

    def check_same_model(self, fingerprint: str) -> None:
        """Raise `FinetuneError` where a resumed run would train over other weights."""
        if self.record.get("model", fingerprint) != fingerprint:
            raise FinetuneError(
                f"{self.path}: the model's weights have changed since this run was started, so it "
                f"cannot be resumed. Bring back the old weights, or start anew with another "
                f"--output."
            )

    def check_same_data(self, fingerprint: str) -> None:
        """Raise `FinetuneError` where a resumed run would see other examples."""
        if self.record and self.record["data"] != fingerprint:
            raise FinetuneError(
                f"{self.path}: the data has changed since this run was started, so it cannot be "
                f"resumed. Bring back the old data, or start anew with another --output."
            )


def _read(file: Path) -> dict[str, Any]:
    try:
        record: Any = json.loads(file.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise FinetuneError(f"{file} cannot be read: {error}. Use another --output.") from error
    if not isinstance(record, dict):
        raise FinetuneError(f"{file} cannot be read: it is no JSON object. Use another --output.")
    return record


def write_json(file: Path, content: Any, *, replace: bool = True) -> None:
    """Write ``content`` so that a kill leaves the old file or the new one."""
    text = json.dumps(content, indent=2) + "\n"
    write_file(file, lambda path: path.write_text(text, "utf-8"), replace=replace)
