"""The command line: ``quantlora <command>``. One file per command, registered below.

Command files import torch inside their functions only, so that ``--help`` is quick.
"""

from __future__ import annotations

import importlib.metadata
from typing import Annotated

import typer

from quantlora.cli import inspect_cmd, plugins_cmd
from quantlora.cli.any_hyphens import AnyHyphens
from quantlora.cli.frame import FriendlyGroup
from quantlora.env.command import env

app = typer.Typer(
    name="quantlora",
    cls=FriendlyGroup,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(importlib.metadata.version("quantlora"))
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it and exit.")
    ] = False,
) -> None:
    """LoRA adapters on any quantized PyTorch model."""


# The commands, in the order of ``quantlora --help``.
app.command("env", cls=AnyHyphens)(env)
app.command("inspect", cls=AnyHyphens)(inspect_cmd.inspect)
app.command("plugins", cls=AnyHyphens)(plugins_cmd.plugins)
