"""A command that takes ``--some_option`` for ``--some-option``, as many programs spell theirs."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand


class AnyHyphens(TyperCommand):
    """Underscores in the name of an option are hyphens, where there is such an option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = {name for parameter in self.params for name in parameter.opts}
        return super().parse_args(ctx, [_hyphenated(argument, known) for argument in args])


def _hyphenated(argument: str, known: set[str]) -> str:
    name, equals, value = argument.partition("=")
    meant = name.replace("_", "-")
    return f"{meant}{equals}{value}" if meant.startswith("--") and meant in known else argument
