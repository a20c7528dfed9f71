"""The tables of docs/benchmarks.md, between marks, each under its picture."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tests.benchmarks.machine import sentence

PICTURES = "pictures"


def write_table(page: Path, suite: str, found: dict[str, Any]) -> None:
    """Replace what stands between the marks of ``suite``; add it at the end where it has none."""
    begin, end = f"<!-- measured: {suite} -->", "<!-- end -->"
    title = found["result"]["title"]
    picture = f"![{title}]({PICTURES}/benchmark-{suite}.png)"
    body = growth(found) if "exponent" in found["result"]["rows"][0] else table(found)
    block = f"{begin}\n{picture}\n\n{body}\n{end}"
    text = page.read_text()
    mark = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not mark.search(text):
        text = f"{text.rstrip()}\n\n{block}\n"
    page.write_text(mark.sub(lambda _: block, text))


def table(found: dict[str, Any]) -> str:
    """One row for each case and arm."""
    result = found["result"]
    shares = any("own_share" in row for row in result["rows"])
    head = [
        "case",
        "arm",
        result["unit"],
        f"of {result['reference']}",
        "spread",
        "off from float64",
    ]
    head += ["own cost, of PEFT's (quartiles)"] if shares else []
    lines = [head, ["---"] * len(head), *(_cells(row, shares) for row in result["rows"])]
    body = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    facts = sentence(found["machine"])
    return f"{body}\n\nMinima; spread: lowest and highest ratio of one round. {facts}."


def growth(found: dict[str, Any]) -> str:
    """One row for each curve: the exponent, and the first and last point."""
    curves: dict[str, list[dict[str, Any]]] = {}
    for row in found["result"]["rows"]:
        curves.setdefault(row["case"], []).append(row)
    lines = [["cost", "exponent", "from", "to"], ["---"] * 4]
    lines += [_curve(name, rows) for name, rows in curves.items()]
    body = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    return f"{body}\n\nMinima. {sentence(found['machine'])}."


def _curve(name: str, rows: list[dict[str, Any]]) -> list[str]:
    ends = [
        f"{row['value']:.2f} {row.get('unit', 'ms')} at {row['size']}"
        for row in (rows[0], rows[-1])
    ]
    return [name, f"{rows[0]['exponent']:.2f}", *ends]


def _cells(row: dict[str, Any], shares: bool) -> list[str]:
    spread = f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}" if "ratio_low" in row else ""
    error = f"{row['error']:.1e}" if "error" in row else ""
    cells = [row["case"], row["arm"], f"{row['value']:.2f}", f"{row['ratio']:.2f}", spread, error]
    return [*cells, _share(row)] if shares else cells


def _share(row: dict[str, Any]) -> str:
    if "own_share" not in row:
        return ""
    quartiles = ""
    if "own_share_low" in row:
        quartiles = f" ({row['own_share_low']:.2f} to {row['own_share_high']:.2f})"
    return f"{row['own_share']:.2f}{quartiles}"
