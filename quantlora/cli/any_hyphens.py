"""A command that takes ``--some_option`` for ``--some-option``, as many programs spell theirs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from difflib import SequenceMatcher
from typing import Any

from typer.core import TyperCommand

#: How much of an option's letters a mistyped one shares, as `difflib` counts it.
_NEAR = 0.8


class AnyHyphens(TyperCommand):
    """Underscores in the name of an option are hyphens, where there is such an option."""

    def get_params(self, ctx: Any) -> Any:
        """With nothing behind a switch in the help: it takes no value."""
        return switches_without_type(super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = {name for parameter in self.params for name in parameter.opts}
        with _only_near_names():
            return super().parse_args(ctx, [_hyphenated(argument, known) for argument in args])


def switches_without_type(params: list[Any]) -> list[Any]:
    """``params``, of which those that take no value show none in the help."""
    for parameter in params:
        if getattr(parameter, "is_flag", False) and parameter.metavar is None:
            parameter.metavar = ""
    return params


@contextmanager
def _only_near_names() -> Iterator[None]:
    """An unknown option is answered by slips of the keyboard, not by whatever shares letters."""
    try:
        yield
    except Exception as error:
        near = getattr(error, "possibilities", None)
        name = getattr(error, "option_name", None)
        if near and isinstance(name, str):
            error.possibilities = [  # type: ignore[attr-defined]
                option for option in near if SequenceMatcher(None, name, option).ratio() >= _NEAR
            ]
        raise


def _hyphenated(argument: str, known: set[str]) -> str:
    name, equals, value = argument.partition("=")
    meant = name.replace("_", "-")
    return f"{meant}{equals}{value}" if meant.startswith("--") and meant in known else argument
