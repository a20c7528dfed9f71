"""``report.html``: the report with its pictures, in one file that needs nothing else."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from quantlora import format_size
from quantlora_finetune.reporting.charts import course_charts, memory_chart
from quantlora_finetune.reporting.report import Report

#: Beside this file, with everything that is markup.
_TEMPLATE = "page.html"


def write_page(file: Path, report: Report) -> None:
    """Write the page for ``report``."""
    page = _environment().get_template(_TEMPLATE)
    text = page.render(
        report=report,
        figures=_figures(report),
        courses=course_charts(report.training.steps),
        memory=memory_chart(report.memory),
        memory_rows=list(zip(*(use.rows() for use in report.memory.values()), strict=True)),
        details={name: report.as_json()[name] for name in ("options", "machine", "versions")},
    )
    file.write_text(text, "utf-8")


def _environment() -> Any:
    """Whatever a model, a file's name or an option holds, it is text in the page, no markup."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"size": format_size, "data_url": _data_url, "json": _json}
    return environment


def _figures(report: Report) -> list[tuple[str, str]]:
    """What is told in large letters: value and name."""
    training, memory = report.training, list(report.memory.values())[-1]
    return [
        (f"{report.before.perplexity:.2f} → {report.after.perplexity:.2f}", "held-out perplexity"),
        (f"{-report.fall_percent:+.1f} %", "change of it"),
        (f"{len(training.steps)}", "steps"),
        (f"{training.tokens_per_second:.0f}", "tokens per second"),
        (format_size(memory.total), "memory of tensors"),
    ]


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2)
