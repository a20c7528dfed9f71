"""Tables for notebooks: legible on light and dark pages, for they take the page's own colours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TypeAlias

_CELL = "text-align:left;padding:2px 10px;border-bottom:1px solid rgba(128,128,128,.35)"
_PAGE = "color:inherit;background:transparent"


@dataclass(frozen=True)
class Bar:
    """A cell that is a bar with its number beside it.

    Args:
        share: its length, of the longest bar's; beyond 1 it is 1.
        text: the number, with its unit.
    """

    share: float
    text: str

    def html(self) -> str:
        width = round(100 * min(max(self.share, 0.0), 1.0)) if self.share == self.share else 100
        return (
            f'<div style="width:{width}px;height:.7em;background:rgba(90,120,220,.75);'
            f'display:inline-block;margin-right:6px"></div>{escape(self.text)}'
        )


Cell: TypeAlias = str | Bar


def html_table(columns: Sequence[str], rows: Iterable[Sequence[Cell]], title: str = "") -> str:
    """A table; text is escaped, and its line ends are kept."""
    caption = f'<caption style="{_PAGE};font-weight:bold;text-align:left">{escape(title)}</caption>'
    head = "".join(f'<th style="{_CELL}">{escape(name)}</th>' for name in columns)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return (
        f'<table style="{_PAGE};border-collapse:collapse">{caption if title else ""}'
        f"{f'<thead><tr>{head}</tr></thead>' if any(columns) else ''}<tbody>{body}</tbody></table>"
    )


def html_lines(lines: Iterable[str]) -> str:
    """Paragraphs of plain text."""
    style = f"{_PAGE};margin:4px 0;white-space:pre-wrap"
    return "".join(f'<p style="{style}">{escape(line)}</p>' for line in lines)


def _cell(cell: Cell) -> str:
    content = cell.html() if isinstance(cell, Bar) else escape(cell).replace("\n", "<br>")
    return f'<td style="{_CELL}">{content}</td>'
