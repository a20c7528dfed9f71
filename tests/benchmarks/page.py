"""The tables of docs/benchmarks.md, between marks, and a plot for each suite."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tests.benchmarks.machine import sentence

COLORS = {"base": "#8a8a8a", "dense": "#c9c9c9", "peft": "#c2571a", "quantlora": "#1f5fa8"}


def write_table(page: Path, suite: str, found: dict[str, Any]) -> None:
    """Replace what stands between the marks of ``suite``; add it at the end where it has none."""
    begin, end = f"<!-- measured: {suite} -->", "<!-- end -->"
    block = f"{begin}\n{table(found)}\n{end}"
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


def plot(file: Path, found: dict[str, Any]) -> None:
    """Bars by case, one for each arm."""
    from matplotlib.figure import Figure

    result = found["result"]
    cases = list(dict.fromkeys(row["case"] for row in result["rows"]))
    arms = [arm for arm in COLORS if any(row["arm"] == arm for row in result["rows"])]
    figure = Figure(figsize=(8, 1.2 + 0.28 * len(cases) * (len(arms) + 1)), layout="constrained")
    axes = figure.subplots()
    for position, arm in enumerate(arms):
        rows = {row["case"]: row["value"] for row in result["rows"] if row["arm"] == arm}
        places = [cases.index(case) * (len(arms) + 1) + position for case in rows]
        bars = axes.barh(places, list(rows.values()), color=COLORS[arm], label=arm)
        axes.bar_label(bars, fmt="%.3g", padding=3, fontsize=7)
    middles = [i * (len(arms) + 1) + (len(arms) - 1) / 2 for i in range(len(cases))]
    axes.set_yticks(middles, cases, fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel(f"{result['unit']}, logarithmic; less is better")
    axes.set_title(result["title"], loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(file, dpi=110)
