"""What is shown while data are read and tokenized, which takes a while for megabytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from quantlora_finetune.data.examples import TrainingTokenizer

_COLUMNS = (
    SpinnerColumn(),
    TextColumn("{task.description}: {task.fields[tokens]:,} tokens"),
    TimeElapsedColumn(),
)


@contextmanager
def reading_progress(console: Console, name: str, tokenizer: TrainingTokenizer) -> Iterator[None]:
    """Tokens so far, and the time, within the block; on a terminal only."""
    bar = Progress(*_COLUMNS, console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task(f"reading {name}", total=None, tokens=0)
    found = [0]

    def count(tokens: int) -> None:
        found[0] += tokens
        bar.update(task, tokens=found[0])

    tokenizer.progress = count
    try:
        with bar:
            yield
    finally:
        tokenizer.progress = None
