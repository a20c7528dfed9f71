"""A picture for each suite: shares of the reference's as bars, growth as lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLORS = {
    "base": "#8a8a8a",
    "dense": "#c9c9c9",
    "exact": "#8a8a8a",
    "torch": "#8a8a8a",
    "peft": "#c2571a",
    "quantlora": "#1f5fa8",
    "quantlora, first use": "#7fa8d4",
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
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(file, dpi=90)


def _arms(result: dict[str, Any]) -> list[str]:
    return [arm for arm in COLORS if any(row["arm"] == arm for row in result["rows"])]


def _cases(result: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(row["case"] for row in result["rows"]))


def _height(result: dict[str, Any]) -> float:
    return float(1.1 + 0.24 * len(_cases(result)) * (len(_arms(result)) + 1))


def _bars(axes: Any, result: dict[str, Any]) -> None:
    """Shares of the reference arm's, with the lowest and highest of one round."""
    cases, arms = _cases(result), _arms(result)
    for number, arm in enumerate(arms):
        rows = {row["case"]: row for row in result["rows"] if row["arm"] == arm}
        heights = [cases.index(case) * (len(arms) + 1) + number for case in rows]
        shares = [min(row["ratio"], LONGEST) for row in rows.values()]
        axes.barh(heights, shares, color=COLORS[arm], label=arm)
        for height, row in zip(heights, rows.values(), strict=True):
            _label(axes, height, row, result["unit"])
    axes.axvline(1, color="#444444", linewidth=0.8)
    middles = [i * (len(arms) + 1) + (len(arms) - 1) / 2 for i in range(len(cases))]
    axes.set_yticks(middles, cases, fontsize=8)
    axes.set_xlim(0, LONGEST * 1.15)
    axes.invert_yaxis()
    axes.set_xlabel(f"share of {result['reference']}'s; shorter is better")


def _label(axes: Any, height: float, row: dict[str, Any], unit: str) -> None:
    end = min(row["ratio"], LONGEST)
    low, high = row.get("ratio_low", end), min(row.get("ratio_high", end), LONGEST)
    if low < high:
        axes.plot([low, high], [height, height], color="black", linewidth=0.8, marker="|")
    text = f"{row['value']:.3g} {unit} ({row['ratio']:.2g})"
    axes.text(max(end, high) + 0.03, height, text, va="center", fontsize=7)


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
