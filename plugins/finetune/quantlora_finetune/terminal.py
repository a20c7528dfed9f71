"""``finetune`` for people at a terminal: upstream libraries quiet, Ctrl-C answered."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from quantlora.errors import AdapterWarning, PluginWarning
from quantlora_finetune.options.finetune_options import FinetuneOptions

#: What a shell expects of a program that ended by SIGINT.
_INTERRUPTED = 130


def run_for_terminal(options: FinetuneOptions, given: Collection[str]) -> None:
    """Run and show it; Ctrl-C says what is safe and how to go on, with exit code 130."""
    console = Console(highlight=False)
    try:
        with quiet_upstream():
            from quantlora_finetune.job import finetune

            finetune(options, given, console)
    except KeyboardInterrupt:
        _interrupted(options, console)
        raise typer.Exit(_INTERRUPTED) from None


def _interrupted(options: FinetuneOptions, console: Console) -> None:
    from quantlora_finetune.run.run_folder import RunFolder
    from quantlora_finetune.show import Show

    run = RunFolder(options.output, {})
    Show(console).interrupted(run.path, run.steps_done, run.has_begun)


@contextmanager
def quiet_upstream() -> Iterator[None]:
    """Within the block nobody's log messages, warnings and bars are shown but our own."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for ours in (AdapterWarning, PluginWarning):
                warnings.simplefilter("default", ours)
            _no_bars()
            yield
    finally:
        logging.disable(before)


def _no_bars() -> None:
    """None for reading files; the hub's, for downloads, stay."""
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    enable_progress_bars()
