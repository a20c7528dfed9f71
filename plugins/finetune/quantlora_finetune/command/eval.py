"""``quantlora eval``: figures of a trained model on data, with the adapter and without."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantlora_finetune.command.shared_options import Base, BatchSize, Folder, Map, next_command

if TYPE_CHECKING:
    from rich.console import Console

    from quantlora_finetune.trained.score import Score


def eval_(
    folder: Folder,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", "-d", help="As of `quantlora finetune`. Default: what the run held out."
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="The part of a hub data set.")] = "test",
    length: Annotated[
        int | None, typer.Option(min=8, metavar="N", help="Tokens per example. Default: the run's.")
    ] = None,
    examples: Annotated[
        int, typer.Option(min=1, metavar="N", help="Measure on at most so many.")
    ] = 200,
    map: Map = None,
    batch_size: BatchSize = 8,
    model: Base = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure what was trained, side by side with its base: perplexity, and exact answers.

    An answer is exact when the model, taking the most likely token each time, writes the wanted
    one; that is counted where the data has prompts or conversations.

    **Examples**

    - `quantlora eval my-adapter`
    - `quantlora eval my-adapter --data questions.jsonl --json`
    """
    from rich.console import Console

    from quantlora_finetune.terminal import quiet_upstream

    with quiet_upstream():
        from quantlora_finetune.trained.score import eval_data
        from quantlora_finetune.trained.side_by_side import side_by_side
        from quantlora_finetune.trained.trained_model import open_trained

        console = Console(stderr=True, highlight=False)
        with console.status(f"loading {folder}"):
            trained = open_trained(folder, model)
        chosen = eval_data(trained, data, split, length, examples, map)
        scores = side_by_side(trained, chosen.examples, batch_size, console)
    if json:
        facts = {"data": chosen.name, "examples": len(chosen.examples)}
        typer.echo(json_format.dumps(facts | _as_json(scores), indent=2))
    else:
        out = Console(highlight=False)
        out.print(f"{chosen.name}: {len(chosen.examples)} examples", soft_wrap=True, markup=False)
        show_scores(scores, out)
        _next(folder, out)


def _as_json(scores: dict[str, Score]) -> dict[str, Any]:
    from dataclasses import asdict

    return {name.replace(" ", "_"): asdict(found) for name, found in scores.items()}


def show_scores(scores: dict[str, Score], console: Console) -> None:
    """A table with a column for each model."""
    from rich.table import Table

    table = Table()
    table.add_column("")
    for name in scores:
        table.add_column(name, justify="right", overflow="fold")
    found = scores.values()
    table.add_row("perplexity", *(f"{score.perplexity:.2f}" for score in found))
    if any(score.answers for score in found):
        table.add_row("exact answers", *(f"{score.exact} of {score.answers}" for score in found))
    console.print(table)


def _next(folder: Path, console: Console) -> None:
    next_command(console, "chat", folder)
