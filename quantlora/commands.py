"""A command from a dataclass: each field becomes one option, with the help that is beside it."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import typer

T = TypeVar("T")
#: Arguments as typed, to arguments as the command takes them.
Rewrite = Callable[[Sequence[str]], list[str]]


def command_of(
    options: type[T],
    run: Callable[[T, frozenset[str]], None],
    rewrite: Rewrite | None = None,
) -> Callable[..., None]:
    """A function for ``app.command`` whose parameters are the fields of ``options``.

    Args:
        options: a dataclass; its fields are ``Annotated[type, typer.Option(...)]``.
        run: gets the object, and the names of the fields that the user gave.
        rewrite: is shown what was typed after the command's name, and says what is meant.
    """

    def command(ctx: typer.Context, **values: Any) -> None:
        given = {name for name in values if _was_given(ctx, name)}
        run(options(**values), frozenset(given))

    hints = {"ctx": typer.Context, **typing.get_type_hints(options, include_extras=True)}
    command.__annotations__ = hints
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=hints["ctx"])]
        + [_parameter(field, hints[field.name]) for field in dataclasses.fields(options)]  # type: ignore[arg-type]
    )
    if rewrite is not None:
        command.rewrite = rewrite  # type: ignore[attr-defined]
    command.__name__ = run.__name__
    command.__doc__ = run.__doc__
    return command


def _parameter(field: dataclasses.Field[Any], hint: Any) -> inspect.Parameter:
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hint
    )


def _was_given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"
