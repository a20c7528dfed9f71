"""Opening a run's folder: free for a new one, or fit to be resumed as it was started."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from quantlora.errors import FinetuneError
from quantlora_finetune.data.template import TEMPLATES, template_text
from quantlora_finetune.options.choices import option_name
from quantlora_finetune.options.finetune_options import FinetuneOptions
from quantlora_finetune.run.limits import existing
from quantlora_finetune.run.run_folder import RUN, RunFolder
from quantlora_finetune.run.run_record import started_with
from quantlora_finetune.training.checkpoints import check_last

#: What may be changed when a run is resumed.
_CHANGEABLE = {"output", "resume", "steps", "save_every", "eval_examples", "report_to"}


def open_run(options: FinetuneOptions, given: Collection[str]) -> tuple[RunFolder, FinetuneOptions]:
    """The folder of the run, and its options: resumed, those it was started with.

    Args:
        given: names of the options that the user gave, to notice contradictions.

    Raises:
        FinetuneError: the folder holds something else, or nothing to resume, or other options.
    """
    run = RunFolder.at(options.output)
    if not options.resume:
        _check_free(run)
        return run, dataclasses.replace(options, **_absolute(options))
    if not run.record:
        raise FinetuneError(
            f"{run.path} holds no run to resume: --output names the folder of the run; "
            f"without --resume a new one is started."
        )
    resumed = _resumed(run, options, given)
    check_last(run.checkpoints)
    return run, resumed


def _check_free(run: RunFolder) -> None:
    there = existing(run.path)
    if not there.is_dir():
        raise FinetuneError(f"--output {run.path}: {there} is a file: name a folder.")
    if run.has_begun:
        state = "is finished" if run.is_finished else f"stopped after {run.steps_done} steps"
        raise FinetuneError(
            f"{run.path} holds a run already; it {state}. Continue it by --resume, or name "
            f"another folder with --output."
        )
    if run.holds_others:
        raise FinetuneError(f"{run.path} is not empty: name another folder with --output.")
    if not os.access(existing(run.path), os.W_OK):
        raise FinetuneError(f"--output {run.path} cannot be written to: name another folder.")


def _resumed(run: RunFolder, options: FinetuneOptions, given: Collection[str]) -> FinetuneOptions:
    started = started_with(run.path / RUN, run.record)
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
    """Paths that still hold in another working directory, and a template's own text."""
    named = {name: getattr(options, name) for name in ("model", "data", "reference", "eval_data")}
    found = {k: str(Path(v).expanduser().resolve()) for k, v in named.items() if v and _exists(v)}
    if options.template is None or options.template in TEMPLATES:
        return found
    return found | {"template": template_text(options.template)}


def _exists(path: str) -> bool:
    return Path(path).expanduser().exists()
