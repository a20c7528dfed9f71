"""The command line: ``quantlora <command>``.

Commands import torch inside their functions only, so that ``--help`` is quick.
"""

from __future__ import annotations

import importlib.metadata
import json as json_format
from typing import Annotated

import typer

from quantlora.cli import new_plugin, plugins_cmd
from quantlora.cli.any_hyphens import AnyHyphens
from quantlora.cli.frame import FriendlyGroup
from quantlora.env.command import env

app = typer.Typer(
    name="quantlora",
    cls=FriendlyGroup,
    no_args_is_help=True,
    add_completion=True,
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


def inspect(
    model: Annotated[
        str, typer.Argument(help="A model's folder or hub id, or an adapter's folder.")
    ],
    backend: Annotated[str, typer.Option(help="Format to pack to; `auto`: as it is.")] = "auto",
    rank: Annotated[
        int, typer.Option("--rank", "-r", min=1, metavar="N", help="Rank of the adapter.")
    ] = 8,
    target_modules: Annotated[
        str,
        typer.Option(
            "--target-modules",
            "--targets",
            help="`all-linear`, or names with commas between them.",
        ),
    ] = "all-linear",
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what wrap would do to MODEL: layers, formats, memory, adapter size. Loads no weights.

    Of an adapter's folder: its rank and base, and how large its updates are, layer by layer.

    Exit code: 0, the model can be loaded and wrapped here; 1, it cannot.
    """
    from rich.console import Console

    from quantlora.cli.inspect_adapter import told_of_adapter
    from quantlora.env.clean_output import strays_to_stderr

    if told_of_adapter(model, json):
        return
    names = [name.strip() for name in target_modules.split(",") if name.strip()]
    chosen = target_modules if target_modules == "all-linear" else names
    with strays_to_stderr():
        from quantlora.inspection.report import inspect_model
        from quantlora.inspection.show import show

        found = inspect_model(model, backend, r=rank, target_modules=chosen)
    if json:
        typer.echo(json_format.dumps(found.as_json(), indent=2))
    else:
        show(found, Console(highlight=False))
    if found.problem or found.problems:
        raise typer.Exit(1)


# The commands, in the order of ``quantlora --help``.
app.command("env", cls=AnyHyphens)(env)
app.command("inspect", cls=AnyHyphens)(inspect)
app.command("plugins", cls=AnyHyphens)(plugins_cmd.plugins)
app.command("new-plugin", cls=AnyHyphens)(new_plugin.new_plugin)
