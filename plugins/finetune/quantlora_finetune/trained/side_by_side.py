"""The scores of a trained model with its adapter and without, or of a whole model."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.progress import Progress

from quantlora_finetune.data.examples import Example
from quantlora_finetune.trained.score import Score, score, with_answers
from quantlora_finetune.trained.trained_model import TrainedModel

WITHOUT, WITH = "without adapter", "with adapter"


def side_by_side(
    trained: TrainedModel, examples: Sequence[Example], batch_size: int, console: Console
) -> dict[str, Score]:
    """Scores by the name of their column."""
    if not trained.folder.has_adapter:
        return {"model": shown_score(trained, examples, batch_size, console, "measuring")}
    with trained.without_adapter():
        before = shown_score(trained, examples, batch_size, console, WITHOUT)
    return {WITHOUT: before, WITH: shown_score(trained, examples, batch_size, console, WITH)}


def shown_score(
    trained: TrainedModel,
    examples: Sequence[Example],
    batch_size: int,
    console: Console,
    what: str,
) -> Score:
    """The score, with a bar on a terminal while answers are generated."""
    hidden = not console.is_terminal
    with Progress(console=console, disable=hidden, transient=True) as bar:
        task = bar.add_task(what, total=len(with_answers(examples)) or None)
        return score(trained, examples, batch_size, lambda done: bar.advance(task, done))
