"""`finetune`: the whole way, from options to an adapter with its report. Read this file first."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from rich.console import Console

from quantlora_finetune.options.finetune_options import FinetuneOptions
from quantlora_finetune.prepared_job import prepare
from quantlora_finetune.run import processes
from quantlora_finetune.run.limits import explained, require_libraries
from quantlora_finetune.run.open_run import open_run
from quantlora_finetune.run.run_folder import REPORT
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
    require_libraries(options)
    show = Show(console if console and processes.is_first() else Console(quiet=True))
    run, options = open_run(options, given)
    processes.wait_for_all()  # to look at the folder before one begins to write
    if run.is_finished and run.steps_done >= options.steps:
        show.finished_already(run.path, options.steps)
        return dict(json.loads((run.path / REPORT).read_text("utf-8")))
    with explained(options):
        job = prepare(options, run, show)
        before = job.before()
        show.measurement("before", before)
        training = job.train(show.console)
        after = job.measure()
        show.measurement("after", after)
        show.memory(job.memory, training.memory)
        report = job.leave(training, before, after)
    show.result(run.path, report)
    return report
