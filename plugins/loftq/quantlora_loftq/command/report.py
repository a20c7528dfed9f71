"""What each layer lost, with and without LoftQ: JSON, and a picture where matplotlib is there."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from quantlora_loftq.command.recipe import Recipe

if TYPE_CHECKING:
    from quantlora_loftq.command.layer_work import LayerFacts

REPORT, PLOT = "loftq_report.json", "loftq_report.png"
SCHEMA = "quantlora.loftq/1"


def write_report(out: Path, recipe: Recipe, layers: list[LayerFacts]) -> None:
    """``loftq_report.json`` and ``loftq_report.png``, the layers in the order of their paths."""
    layers = sorted(layers, key=lambda one: [_number(part) for part in one.path.split(".")])
    report = {
        "schema": SCHEMA,
        "recipe": asdict(recipe),
        "layers": [asdict(one) for one in layers],
        "mean_quantized_error": _mean(one.quantized_error for one in layers),
        "mean_loftq_error": _mean(one.loftq_error for one in layers),
    }
    (out / REPORT).write_text(json.dumps(report, indent=2) + "\n")
    if find_spec("matplotlib"):
        _plot(out / PLOT, layers)


def _number(part: str) -> tuple[int, str]:
    return (int(part), "") if part.isdigit() else (-1, part)


def _mean(values: object) -> float:
    numbers = list(values)  # type: ignore[call-overload]
    return float(sum(numbers) / max(1, len(numbers)))


def _plot(file: Path, layers: list[LayerFacts]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6.0, 0.08 * len(layers)), 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([one.quantized_error for one in layers], ".-", label="quantized")
    axes.plot([one.loftq_error for one in layers], ".-", label="quantized, with LoftQ")
    axes.set(xlabel="layer", ylabel="‖error‖ / ‖W‖", ylim=(0, None))
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120)
