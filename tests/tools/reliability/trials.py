"""All trials, in the order of the page. A new one is a file beside this, and an entry here."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tests.tools.reliability import (
    concurrent_saves,
    copies,
    determinism,
    faulty_environments,
    full_disk,
    kill_export,
    kill_finetune,
    kill_loftq,
    kill_save,
    memory_runs_out,
    mutated_files,
    threads,
    workers,
)  # fmt: skip
from tests.tools.reliability.outcome import Outcome, Result, Trial

TRIALS = (
    Trial(
        "kill-save",
        "`save_adapter` over another adapter, killed (SIGKILL): the folder holds the old adapter "
        "or the new one, whole, and what else was in it; the next save leaves no litter.",
        kill_save.killed_saves, full=2000, short=60,
    ),
    Trial(
        "kill-export",
        "`export_merged`, killed: there is no folder, or a whole export; the next one goes through "
        "to the same bits.",
        kill_export.killed_exports, full=120, short=4,
    ),
    Trial(
        "kill-loftq",
        "`quantlora loftq`, killed, some runs twice: the same command goes on and ends with the "
        "bits of the unbroken run; the source is untouched.",
        kill_loftq.killed_runs, full=60, short=2,
    ),
    Trial(
        "kill-finetune",
        "`quantlora finetune`, killed, some runs twice: `--resume` ends with the adapter and the "
        "losses of the unbroken run, bit for bit.",
        kill_finetune.killed_runs, full=150, short=2,
    ),
    Trial(
        "full-disk",
        "A disk that fills up at some point of a run: an error that says so, nothing lost that was "
        "there; with room again, the same command ends as if nothing had been.",
        full_disk.full_disks, full=80, short=4,
    ),
    Trial(
        "read-only",
        "A file system mounted read-only: an error that says so, and everything as it was.",
        full_disk.read_only, full=8, short=4,
    ),
    Trial(
        "mutated-files",
        "`load_adapter` on damaged and hostile files: an error of ours, and the model as it was; "
        "or the values that other readers find in the files. Nothing is written, run, unpickled or "
        "fetched, no link out of the folder is followed, and none takes more than 5 s.",
        mutated_files.mutated_files, full=10_000, short=250,
    ),
    Trial(
        "concurrent-saves",
        "Three processes with two threads each that save into one folder: each save goes through, "
        "each read meanwhile finds one adapter, whole.",
        concurrent_saves.concurrent_saves, full=2000, short=60,
    ),
    Trial(
        "threads",
        "Eight threads that call one wrapped model, also with gradients: the bits of one call "
        "after the other.",
        threads.threads, full=800, short=80,
    ),
    Trial(
        "workers",
        "A wrapped model in the workers of a DataLoader, by fork and by spawn: the bits of the "
        "first process.",
        workers.workers, full=400, short=8,
    ),
    Trial(
        "copies",
        "`copy.deepcopy`, `pickle` and `torch.save` of a wrapped model, new and after use, merged, "
        "with two adapters: the same outputs, no shared memory.",
        copies.copies, full=120, short=60,
    ),
    Trial(
        "memory-runs-out",
        "Out of memory or Ctrl-C at each step of `wrap`, `load_adapter` and `merge` (simulated by "
        "a plugin that raises there): the model is as it was, and the same call goes through.",
        memory_runs_out.memory_runs_out, full=300, short=300,
    ),
    Trial(
        "determinism",
        "The same seed, in the same number of threads: the same adapter, bit for bit.",
        determinism.determinism, full=45, short=3,
    ),
    Trial(
        "faulty-environments",
        "An environment with a fault that users report: the environment report names the fault, "
        "and `wrap` raises it with the same remedy.",
        faulty_environments.faulty_environments, full=100, short=0,
    ),
)  # fmt: skip


def run_trial(
    trial: Trial, count: int, seed: int, noted: Callable[[Outcome], object] = lambda one: None
) -> Result:
    """``count`` attempts; ``noted`` is told of each. A trial that breaks off has failed."""
    torch.set_num_threads(1)
    chance = random.Random(f"{seed} {trial.name}")
    outcomes, begin = [], time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="quantlora-") as folder:
        try:
            for one in trial.run(Path(folder).resolve(), count, chance):
                outcomes.append(one)
                noted(one)
        except Exception as error:
            outcomes.append(Outcome("the trial itself", "", f"{type(error).__name__}: {error}"))
    return Result(trial, tuple(outcomes), time.perf_counter() - begin)
