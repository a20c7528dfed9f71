"""``report.html``: the report with its pictures, in one file that needs nothing else."""

from __future__ import annotations

import base64
import json
from html import escape
from pathlib import Path
from typing import Any

from quantlora import format_size
from quantlora_finetune.reporting.charts import course_chart, memory_chart
from quantlora_finetune.reporting.report import short_name

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
  body {{ font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff;
         max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
  h1 {{ font-size: 1.5rem; margin-bottom: 0; }}
  h2 {{ font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; }}
  .about {{ color: #666; margin-top: .2rem; }}
  .figures {{ display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.5rem 0; }}
  .figure {{ flex: 1 1 9rem; border: 1px solid #ddd; border-radius: .5rem; padding: .6rem 1rem; }}
  .figure b {{ display: block; font-size: 1.4rem; color: #1f5fa8; }}
  .figure span {{ color: #666; font-size: .9rem; }}
  img {{ width: 100%; height: auto; }}
  table {{ border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }}
  th, td {{ text-align: left; padding: .2rem 1.2rem .2rem 0; border-bottom: 1px solid #eee; }}
  td.number, th.number {{ text-align: right; }}
  tr.total td {{ font-weight: 600; border-top: 2px solid #ccc; }}
  pre {{ white-space: pre-wrap; background: #f6f6f6; border-radius: .4rem; padding: .8rem; }}
  summary {{ cursor: pointer; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p class="about">{about}</p>
<div class="figures">{figures}</div>
<h2>Course of the training</h2>
<img alt="Loss, learning rate, gradient norm and tokens per second by step" src="{course}">
<h2>Memory</h2>
<img alt="Memory by component, predicted and measured" src="{memory}">
{memory_table}
<p class="about">Of one process. Activations: the most that one forward and backward have alive at
one moment, besides the gradients of what is trained. Predicted before the first step.</p>
<h2>Sample</h2>
{samples}
<h2>Everything else</h2>
<details><summary>Options, machine and versions</summary>{details}</details>
</body>
</html>
"""


def write_page(file: Path, report: dict[str, Any]) -> None:
    """Write the page for ``report`` (see `make_report`)."""
    course = course_chart(report["training"]["steps"])
    model, data = short_name(report["model"]["name"]), short_name(report["data"]["name"])
    page = _PAGE.format(
        title=escape(f"{model}, fine-tuned on {data}"),
        about=escape(_about(report)),
        figures="".join(_figure(*one) for one in _figures(report)),
        course=_embedded(course),
        memory=_embedded(memory_chart(report["memory"])),
        memory_table=_memory_table(report["memory"]),
        samples=_samples(report["sample"]),
        details=_details({k: report[k] for k in ("options", "machine", "versions")}),
    )
    file.write_text(page, "utf-8")


def _about(report: dict[str, Any]) -> str:
    model = report["model"]
    formats = ", ".join(f"{count} layers in {name}" for name, count in model["formats"].items())
    return (
        f"{formats}; rank {report['options']['rank']}, {model['trained_parameters']:,} trained "
        f"parameters; {model['compute_dtype']} on {model['device']}"
    )


def _figures(report: dict[str, Any]) -> list[tuple[str, str]]:
    perplexity, training = report["perplexity"], report["training"]
    memory = report["memory"]["measured"] or report["memory"]["predicted"]
    return [
        (f"{perplexity['before']:.2f} → {perplexity['after']:.2f}", "held-out perplexity"),
        (f"{-perplexity['fall_percent']:+.1f} %", "change of it"),
        (f"{len(training['steps'])}", "steps"),
        (f"{training['tokens_per_second']:.0f}", "tokens per second"),
        (format_size(sum(memory.values())), "memory of tensors"),
    ]


def _figure(value: str, name: str) -> str:
    return f'<div class="figure"><b>{escape(value)}</b><span>{escape(name)}</span></div>'


def _embedded(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _memory_table(memory: dict[str, Any]) -> str:
    told = [name for name in ("predicted", "measured") if memory[name]]
    rows = [
        _row("td", part.replace("_", " "), [format_size(memory[name][part]) for name in told])
        for part in memory["predicted"]
    ]
    total = _row("td", "total", [format_size(sum(memory[name].values())) for name in told], "total")
    return f"<table>{_row('th', 'component', told)}{''.join(rows)}{total}</table>"


def _row(tag: str, name: str, numbers: list[str], style: str = "") -> str:
    cells = "".join(f'<{tag} class="number">{escape(one)}</{tag}>' for one in numbers)
    return f'<tr class="{style}"><{tag}>{escape(name)}</{tag}>{cells}</tr>'


def _samples(sample: dict[str, str]) -> str:
    names = {"prompt": "Prompt", "before": "Continued before", "after": "Continued after"}
    return "".join(f"<p>{name}</p><pre>{escape(sample[key])}</pre>" for key, name in names.items())


def _details(sections: dict[str, dict[str, Any]]) -> str:
    return "".join(
        f"<h3>{escape(name)}</h3><pre>{escape(json.dumps(values, indent=2))}</pre>"
        for name, values in sections.items()
    )
