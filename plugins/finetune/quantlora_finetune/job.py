"""`finetune`: the whole way, from options to an adapter with its report. Read this file first."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from typing import Any

from rich.console import Console

from quantlora.errors import FinetuneError
from quantlora_finetune.options.choices import TrainerName
from quantlora_finetune.options.finetune_options import FinetuneOptions, check_given
from quantlora_finetune.prepared_job import prepare
from quantlora_finetune.run import processes
from quantlora_finetune.run.limits import explained, require_libraries
from quantlora_finetune.run.open_run import open_run
from quantlora_finetune.run.run_folder import REPORT, RunFolder
from quantlora_finetune.show import Show


def finetune(
    options: FinetuneOptions, given: Collection[str] = (), console: Console | None = None
) -> dict[str, Any]:
    """Fine-tune as ``options`` say; leave adapter, report, plot and card in ``options.output``.

    Args:
        given: names of the options that were chosen, not left at their defaults; a resumed run
            refuses those that contradict it.
        console: where to show what happens; by default, nowhere.

    Returns:
        The report, as in ``report.json``.

    Raises:
        QuantloraError: the options, the model, the data or the folder will not do; the message
            says what to change.
    """
    check_given(given)
    require_libraries(options)
    show = Show(console if console and processes.is_first() else Console(quiet=True))
    run, options = open_run(options, given)
    require_libraries(options)  # of the run that is resumed, too
    processes.wait_for_all()  # to look at the folder before one begins to write
    if run.is_finished and run.steps_done >= options.steps:
        show.finished_already(run.path, options.steps)
        return _learned(dict(json.loads((run.path / REPORT).read_text("utf-8"))), run)
    with explained(options):
        job = prepare(options, run, show)
        before = job.before()
        show.measurement("before", before)
        training = job.train(show.console)
        after = job.measure()
        show.measurement("after", after)
        show.memory(job.memory, training.memory)
        report = job.report(training, before, after)
        job.leave(report)
    show.result(run.path, report)
    return _learned(report.as_json(), run)


def _learned(report: dict[str, Any], run: RunFolder) -> dict[str, Any]:
    """``report``, unless the training has made the model worse on all that it was shown."""
    before, after = report["perplexity"]["before"], report["perplexity"]["after"]
    losses = [step["loss"] for step in report["training"]["steps"]]
    last = losses[-max(1, len(losses) // 4) :]
    compares = TrainerName(report["options"]["trainer"]).compares  # they trade perplexity for more
    diverged = not compares and bool(last) and not sum(last) / len(last) <= losses[0]
    if not math.isfinite(after) or (after > before and diverged):
        raise FinetuneError(
            f"{run.path}: the training has diverged: held-out perplexity went from {before:.4g} to "
            f"{after:.4g}, and the loss rose too. What is there is for looking at only: start "
            f"anew, in another --output, with a lower --lr or a longer --warmup."
        )
    return report
