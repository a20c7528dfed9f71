"""The command itself, shared by ``python -m quantlora.env`` and ``quantlora env``."""

from __future__ import annotations

import traceback
from enum import Enum
from typing import Annotated

import typer
from rich.console import Console

from quantlora.env.clean_output import strays_to_stderr
from quantlora.env.report import Report, make_report
from quantlora.env.show import as_json, as_markdown, show
from quantlora.env.unforeseen import unforeseen, wants_traceback, was_interrupted

#: The report could not be made; that says nothing about the backends.
TOOL_FAILED = 2


class Form(str, Enum):
    TABLES = "tables"
    JSON = "json"
    MARKDOWN = "markdown"


def env(
    backend: Annotated[
        str | None, typer.Option(help="Report this backend only; exit 1 if it is not usable.")
    ] = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Run each backend for real, in a process of its own.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON (see docs/env.md).")] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print a form to paste into a GitHub issue.")
    ] = False,
) -> None:
    """Say which LoRA backend works here and, if one does not, why and what to type.

    Exit code: 0, a backend is usable (with --backend: that one); 1, none is; 2, the report failed.
    """
    form = Form.JSON if json else Form.MARKDOWN if markdown else Form.TABLES
    try:
        with strays_to_stderr():
            report = make_report(backend, deep)
        _print(report, form)
    except Exception as error:
        if was_interrupted(error):
            raise KeyboardInterrupt from None
        if wants_traceback():
            traceback.print_exc()
        typer.echo(
            f"error: the report failed, which says nothing about the backends. {unforeseen(error)}",
            err=True,
        )
        raise typer.Exit(TOOL_FAILED) from None
    raise typer.Exit(report.exit_code)


def _print(report: Report, form: Form) -> None:
    if form is Form.TABLES:
        show(report, Console(highlight=False))
    else:
        typer.echo(as_json(report) if form is Form.JSON else as_markdown(report))
