"""What all commands share: a user's mistake ends in a message and exit code 1, not a traceback."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from quantlora.cli.plugin_commands import plugin_commands
from quantlora.discovery.entry_points import text_of
from quantlora.errors import QuantloraError

#: What a shell expects of a program that ended by SIGINT.
INTERRUPTED = 130
#: Set to 1 to see where an error that nobody has foreseen comes from.
TRACEBACK = "QUANTLORA_TRACEBACK"


def print_error(error: BaseException | str) -> None:
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

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with answered():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with answered():
            return super().invoke(ctx)


@contextmanager
def answered() -> Iterator[None]:
    """Whatever ends the block ends in one message; the traceback only where it is asked for."""
    try:
        yield
    except KeyboardInterrupt:
        Console(stderr=True, highlight=False).print("interrupted.")
        raise typer.Exit(INTERRUPTED) from None
    except QuantloraError as error:
        print_error(error)
        raise typer.Exit(1) from None
    except Exception as error:
        if hasattr(error, "exit_code") or isinstance(error, typer.Abort):  # typer's own
            raise
        if os.environ.get(TRACEBACK) == "1":
            raise
        text = " ".join(text_of(error).split())
        print_error(
            f"{type(error).__name__}: {text}. Nobody has foreseen this: please report it, with "
            f"what {TRACEBACK}=1 shows."
        )
        raise typer.Exit(1) from None
