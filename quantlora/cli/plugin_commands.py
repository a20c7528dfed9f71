"""Commands that plugins bring: looked for when a name is not one of ours, or for ``--help``."""

from __future__ import annotations

import re
from functools import lru_cache
from types import FunctionType
from typing import Any

import typer

from quantlora.cli.any_hyphens import AnyHyphens
from quantlora.commands import Rewrite
from quantlora.discovery.entry_points import cause, kept_apart, shown
from quantlora.discovery.plugins import load_plugins

COMMANDS = "quantlora_commands"


@lru_cache(maxsize=1)
def plugin_commands() -> dict[str, Any]:
    """Click commands by name. A plugin with a wrong one, or a taken name, is disabled."""
    found: dict[str, Any] = {}
    plugins = load_plugins()
    for record in plugins.loaded:
        commands: dict[str, Any] = {}
        for function in plugins.collect(record, COMMANDS):
            if not isinstance(function, FunctionType):
                record.disable(f"{COMMANDS}() must return functions, got {shown(function)}.")
            elif (name := command_name(function)) in {**found, **commands}:
                record.disable(f"the command {name!r} is taken: choose another name.")
            else:
                with kept_apart(lambda error, to=record: to.disable(_no_command(error))):  # type: ignore[misc]
                    commands[name] = _command(name, function)
        if not record.error:
            found |= commands
    return found


def _no_command(error: BaseException) -> str:
    return f"{COMMANDS}() returned a function that makes no command: {cause(error)}"


def command_name(function: FunctionType) -> str:
    """``my_tool`` is typed ``my-tool``."""
    return re.sub("_+", "-", function.__name__.strip("_"))


def _command_class(rewrite: Rewrite | None) -> type[AnyHyphens]:
    """The class of a command whose arguments ``rewrite`` looks at first."""

    class Rewritten(AnyHyphens):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            return super().parse_args(ctx, rewrite(args) if rewrite else args)

    return Rewritten


def _command(name: str, function: FunctionType) -> Any:
    app = typer.Typer(
        add_completion=False,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.command(name, cls=_command_class(getattr(function, "rewrite", None)))(function)
    return typer.main.get_command(app)
