"""`env_report`: the environment report as an object, for notebooks and programs."""

from __future__ import annotations

from quantlora.env.report import Report, make_report
from quantlora.env.rows import remedies, sections, summary
from quantlora.env.show import as_markdown
from quantlora.html_tables import html_lines, html_table


class EnvReport(Report):
    """The report of ``quantlora env``. Shown in a notebook: the verdict, then the tables."""

    def __str__(self) -> str:
        return as_markdown(self)

    def _repr_html_(self) -> str:
        fixes = [f"{whom}: {fix}" for whom, fix in remedies(self)]
        page = html_lines([summary(self), *fixes])
        for section in reversed(sections(self)):
            page += html_table(section.columns, section.rows, section.title)
        return page


def env_report(backend: str | None = None, deep: bool = False) -> EnvReport:
    """Which backend works here and, if one does not, why and what to type.

    Args:
        backend: look at this one only.
        deep: run each backend for real, in a process of its own.
    """
    return EnvReport(**vars(make_report(backend, deep)))
