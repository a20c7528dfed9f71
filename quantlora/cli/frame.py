"""What all commands share: a user's mistake ends in a message and exit code 1, not a traceback."""

from __future__ import annotations

from typing import Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from quantlora.cli.plugin_commands import plugin_commands
from quantlora.errors import QuantloraError


def print_error(error: BaseException) -> None:
    """Write ``error: <message>`` to stderr, without rich's markup: messages contain brackets."""
    message = Text.assemble(("error: ", "bold red"), str(error))
    Console(stderr=True, highlight=False, soft_wrap=True).print(message)


class FriendlyGroup(TyperGroup):
    """Turns every `QuantloraError` of a command into a message on stderr and exit code 1.

    Ours come first; the plugins are loaded only where none of ours is meant.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        return list(dict.fromkeys([*super().list_commands(ctx), *plugin_commands()]))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return super().get_command(ctx, cmd_name) or plugin_commands().get(cmd_name)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except QuantloraError as error:
            print_error(error)
            raise typer.Exit(1) from None
