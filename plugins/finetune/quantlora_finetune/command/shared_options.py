"""What the commands for a trained folder have in common."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

Folder = Annotated[
    Path,
    typer.Argument(
        help="The --output of `quantlora finetune`, any other adapter's folder, or a model's.",
        metavar="FOLDER",
    ),
]
Base = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="The adapter's base, where it is another than its files say."
    ),
]
MaxTokens = Annotated[int, typer.Option(min=1, metavar="N", help="Tokens of a reply, at most.")]
Temperature = Annotated[
    float, typer.Option(min=0.0, metavar="X", help="0: always the most likely token.")
]
TopP = Annotated[
    float,
    typer.Option(
        min=0.01, max=1.0, metavar="X",
        help="Choose among the likeliest tokens that have this probability together.",
    ),
]  # fmt: skip
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, metavar="N", help="Fixes what is drawn.")]
Map = Annotated[str | None, typer.Option("--map", help="Names of columns, ours=theirs.")]
BatchSize = Annotated[int, typer.Option(min=1, metavar="N", help="Prompts or examples at once.")]


def next_command(console: Console, *words: object) -> None:
    """Print what to type next."""
    console.print(
        Text.assemble("Next: ", (shlex.join(map(str, ["quantlora", *words])), "bold")),
        soft_wrap=True,
    )
