"""What all commands share: a user's mistake ends in a message and exit code 1, not a traceback."""

from __future__ import annotations

from typing import Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from quantlora.errors import QuantloraError


def print_error(error: BaseException) -> None:
    """Write ``error: <message>`` to stderr, without rich's markup: messages contain brackets."""
    message = Text.assemble(("error: ", "bold red"), str(error))
    Console(stderr=True, highlight=False, soft_wrap=True).print(message)


class FriendlyGroup(TyperGroup):
    """Turns every `QuantloraError` of a command into a message on stderr and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except QuantloraError as error:
            print_error(error)
            raise typer.Exit(1) from None
