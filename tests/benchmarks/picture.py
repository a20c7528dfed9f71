"""A picture for each suite: shares of the reference's as bars, growth as lines."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

COLORS = {
    "base": "#8a8a8a",
    "exact": "#8a8a8a",
    "torch": "#8a8a8a",
    "peft": "#c2571a",
    "quantlora": "#1f5fa8",
    "quantlora, first use": "#7fa8d4",
    "dense": "#c9c9c9",
}
#: Bars end here, with their number beside them.
LONGEST = 2.5


def plot(file: Path, found: dict[str, Any]) -> None:
    """What fits the rows of the suite."""
    from matplotlib.figure import Figure

    result = found["result"]
    lines = "exponent" in result["rows"][0]
    figure = Figure(figsize=(8, 5) if lines else (8, _height(result)), layout="constrained")
    axes = figure.subplots()
    _lines(axes, result) if lines else _bars(axes, result)
    axes.set_title(result["title"], loc="left", fontsize=12, weight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1, 1)}
    if not lines:
        place = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": 6}
    axes.legend(frameon=False, fontsize=8, **place)
    figure.savefig(file, dpi=90)


def _cases(result: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(row["case"] for row in result["rows"]))


def _height(result: dict[str, Any]) -> float:
    return 1.3 + 0.21 * (len(result["rows"]) + len(_cases(result)))


def _bars(axes: Any, result: dict[str, Any]) -> None:
    """Shares of the reference arm's, with the lowest and highest of one round."""
    height = 0
    middles: list[float] = []
    drawn: set[str] = set()
    for case in _cases(result):
        rows = [row for row in result["rows"] if row["case"] == case]
        rows.sort(key=lambda row: list(COLORS).index(row["arm"]))
        middles.append(height + (len(rows) - 1) / 2)
        for row in rows:
            label = row["arm"] if row["arm"] not in drawn else None
            drawn.add(row["arm"])
            axes.barh(height, min(row["ratio"], LONGEST), color=COLORS[row["arm"]], label=label)
            _label(axes, height, row, result)
            height += 1
        height += 1
    axes.axvline(1, color="#444444", linewidth=0.8)
    axes.set_yticks(middles, _cases(result), fontsize=8)
    axes.set_xlim(0, 1.35 * max(1.0, *(min(row["ratio"], LONGEST) for row in result["rows"])))
    axes.set_ylim(height - 1, -1)
    axes.set_xlabel(f"share of {result['reference']}'s; shorter is better")


def _label(axes: Any, height: float, row: dict[str, Any], result: dict[str, Any]) -> None:
    end = min(row["ratio"], LONGEST)
    low, high = row.get("ratio_low", end), min(row.get("ratio_high", end), LONGEST)
    if low < high:
        axes.plot([low, high], [height, height], color="black", linewidth=0.8, marker="|")
    text = _amount(row["value"], result["unit"])
    if row["arm"] != result["reference"]:
        text += f"  {_share(row['ratio'])}"
    weight = "bold" if row["arm"] == "quantlora" else "normal"
    axes.text(max(end, high) + 0.02, height, text, va="center", fontsize=7, weight=weight)


def _amount(value: float, unit: str) -> str:
    """Three digits; from a second on in seconds."""
    if unit == "ms" and value >= 1e3:
        value, unit = value / 1e3, "s"
    digits = 2 - math.floor(math.log10(max(value, 1e-2)))
    return f"{value:.{max(0, digits)}f} {unit}"


def _share(ratio: float) -> str:
    """What is too short for a bar is said in words."""
    return f"({ratio:.2f})" if ratio >= 0.1 else f"(1/{1 / ratio:.0f})"


def _lines(axes: Any, result: dict[str, Any]) -> None:
    """Milliseconds by size, both logarithmic: a steeper line grows faster."""
    for case in _cases(result):
        rows = [row for row in result["rows"] if row["case"] == case]
        sizes, values = [row["size"] for row in rows], [row["value"] for row in rows]
        label = f"{case}: {rows[0]['exponent']:.2f}"
        axes.plot(sizes, values, marker="o", markersize=4, label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("size; the exponent is in the legend: 1 doubles with it, 0 stays")
    axes.set_ylabel(result["unit"])
