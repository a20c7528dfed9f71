"""The three forms of the report: tables for people, JSON for programs, Markdown for an issue."""

from __future__ import annotations

import json

from rich.console import Console
from rich.table import Table
from rich.text import Text

from quantlora.env.report import Report
from quantlora.env.rows import Section, remedies, sections, summary

_COLOURS = {"READY": "green", "DEGRADED": "yellow", "UNAVAILABLE": "red"}


def show(report: Report, console: Console) -> None:
    """One line of summary, the tables, then the commands that fix things and what to type next."""
    console.print(Text(f"{summary(report)}\n", style="bold"), soft_wrap=True)
    for section in sections(report):
        console.print(_table(section))
    for whom, fix in remedies(report):
        console.print(Text.assemble("\n", (f"{whom}:", "bold")), soft_wrap=True)
        console.print(Text(fix), soft_wrap=True)
    console.print(Text.assemble("\nNext: ", ("quantlora --help", "bold")), soft_wrap=True)


def _table(section: Section) -> Table:
    table = Table(title=section.title, title_justify="left", title_style="bold")
    for column in section.columns:
        table.add_column(column, overflow="fold")
    table.show_header = any(section.columns)
    for row in section.rows:
        table.add_row(*(Text(cell, style=_COLOURS.get(cell, "")) for cell in row))
    return table


def as_json(report: Report) -> str:
    return json.dumps(report.as_json(), indent=2)


def as_markdown(report: Report) -> str:
    """Ready to paste into a GitHub issue: folded, so that it does not hide the question."""
    parts = [_markdown_table(section) for section in sections(report)]
    fixes = [f"- {whom}: `{line}`" for whom, fix in remedies(report) for line in fix.splitlines()]
    return "\n\n".join(
        [
            f"<details>\n<summary>quantlora environment: {summary(report)}</summary>",
            *parts,
            *(["\n".join(fixes)] if fixes else []),
            "</details>",
        ]
    )


def _markdown_table(section: Section) -> str:
    head = [section.columns, tuple("---" for _ in section.columns)]
    lines = ["| " + " | ".join(map(_cell, row)) + " |" for row in (*head, *section.rows)]
    return "\n".join([f"**{section.title}**", "", *lines])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "<br>")
