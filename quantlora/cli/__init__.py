"""The command line: ``quantlora <command>``. One file per command, registered below.

Command files import torch inside their functions only, so that ``--help`` is quick.
"""

from __future__ import annotations

import typer

from quantlora.cli import finetune_cmd
from quantlora.cli.frame import FriendlyGroup

app = typer.Typer(
    name="quantlora",
    cls=FriendlyGroup,
    help="LoRA adapters on any quantized PyTorch model.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

# The commands, in the order of ``quantlora --help``.
app.command("finetune")(finetune_cmd.finetune)
