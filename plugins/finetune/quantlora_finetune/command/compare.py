"""``quantlora compare``: two trainings beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantlora_finetune.command.eval import show_scores
from quantlora_finetune.command.shared_options import BatchSize, Map, MaxTokens, next_command

if TYPE_CHECKING:
    from rich.console import Console

    from quantlora_finetune.trained.comparison import Trial


def compare(
    first: Annotated[Path, typer.Argument(help="A trained folder.", metavar="A")],
    second: Annotated[Path, typer.Argument(help="Another one.", metavar="B")],
    data: Annotated[
        str | None,
        typer.Option("--data", "-d", help="Measure both on it. Default: what A's run held out."),
    ] = None,
    split: Annotated[str, typer.Option(help="The part of a hub data set.")] = "test",
    length: Annotated[
        int | None, typer.Option(min=8, metavar="N", help="Tokens per example. Default: A's.")
    ] = None,
    examples: Annotated[
        int, typer.Option(min=1, metavar="N", help="Measure on at most so many.")
    ] = 200,
    map: Map = None,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="Let both reply to it; repeatable.")
    ] = None,
    max_tokens: MaxTokens = 64,
    batch_size: BatchSize = 8,
) -> None:
    """Show what two trainings differ in: settings, figures on the same data, replies.

    **Examples**

    - `quantlora compare rank-8 rank-32`
    - `quantlora compare lora dora --data test.jsonl --prompt "What is a closure?"`
    """
    from rich.console import Console

    from quantlora_finetune.terminal import quiet_upstream

    out, progress = Console(highlight=False), Console(stderr=True, highlight=False)
    with quiet_upstream():
        from quantlora_finetune.trained.comparison import Measures, different_settings, trials
        from quantlora_finetune.trained.reply import Sampling

        _check_two(first, second)
        differences = different_settings(first, second)
        asked, sampling = prompt or [], Sampling(max_tokens)
        measures = Measures(data, split, length, examples, asked, sampling, batch_size, map)
        name, found, other = trials(first, second, measures, progress)
    _show_settings(first, second, differences, out)
    out.print(f"On {name}:", soft_wrap=True, markup=False)
    show_scores({str(first): found.score, str(second): other.score}, out)
    for text, pair in zip(asked, zip(found.replies, other.replies, strict=True), strict=True):
        _show_replies(text, dict(zip((str(first), str(second)), pair, strict=True)), out)
    better = first if _figure(found) <= _figure(other) else second
    if (better / "adapter_config.json").is_file():
        next_command(out, "merge", better, "--output", f"{better}-merged")
    else:  # a whole model has nothing to merge
        next_command(out, "chat", better)


def _check_two(first: Path, second: Path) -> None:
    from quantlora.errors import FinetuneError

    if first.expanduser().resolve() == second.expanduser().resolve():
        raise FinetuneError(f"{first} and {second} are the same folder: name two.")


def _figure(found: Trial) -> float:
    return found.score.perplexity


def _show_settings(
    first: Path, second: Path, differences: dict[str, tuple[Any, Any]], console: Console
) -> None:
    from rich.table import Table
    from rich.text import Text

    if not differences:
        console.print("Both have the same settings.")
        return
    table = Table()
    for column in ("setting", str(first), str(second)):
        table.add_column(column, overflow="fold")
    for name, values in differences.items():
        table.add_row(name.replace("_", "-"), *(Text(str(value)) for value in values))
    console.print(table)


def _show_replies(prompt: str, found: dict[str, str], console: Console) -> None:
    from rich.text import Text

    console.print(Text(prompt, "bold"), soft_wrap=True)
    for name, reply in found.items():
        console.print(Text.assemble((f"  {name}: ", "dim"), reply.strip()), soft_wrap=True)
