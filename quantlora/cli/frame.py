"""What all commands share: a user's mistake ends in a message and exit code 1, not a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from quantlora.cli.any_hyphens import switches_without_type
from quantlora.cli.plugin_commands import plugin_commands
from quantlora.env.unforeseen import unforeseen, wants_traceback, was_interrupted
from quantlora.errors import QuantloraError
from quantlora.suggestions import near

#: What a shell expects of a program that ended by SIGINT.
INTERRUPTED = 130


def print_error(error: BaseException | str) -> None:
    """Write ``error: <message>`` to stderr, without rich's markup: messages contain brackets."""
    message = Text.assemble(("error: ", "bold red"), str(error))
    Console(stderr=True, highlight=False, soft_wrap=True).print(message)


class FriendlyGroup(TyperGroup):
    """Turns every `QuantloraError` of a command into a message on stderr and exit code 1.

    Ours come first; the plugins are loaded only where none of ours is meant.
    """

    def get_params(self, ctx: Any) -> Any:
        return switches_without_type(super().get_params(ctx))

    def list_commands(self, ctx: Any) -> list[str]:
        return list(dict.fromkeys([*super().list_commands(ctx), *plugin_commands()]))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return super().get_command(ctx, cmd_name) or plugin_commands().get(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As typer does it, with near names of the plugins' commands too."""
        name = next(iter(args), "-")
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            close = " or ".join(map(repr, near(name, self.list_commands(ctx))))
            hint = f" Did you mean {close}?" if close else ""
            ctx.fail(f"no command {name!r}.{hint}")
        return super().resolve_command(ctx, args)

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
    except BaseException as error:
        if _is_typers_own(error) or isinstance(error, BrokenPipeError):
            raise  # typer ends quietly where the reader of a pipe has gone
        if was_interrupted(error):
            Console(stderr=True, highlight=False).print("interrupted.")
            raise typer.Exit(INTERRUPTED) from None
        if not isinstance(error, Exception):
            raise
        if isinstance(error, QuantloraError):
            print_error(error)
        elif wants_traceback():
            raise
        else:
            print_error(unforeseen(error))
        raise typer.Exit(1) from None


def _is_typers_own(error: BaseException) -> bool:
    return hasattr(error, "exit_code") or isinstance(error, typer.Abort | SystemExit)
