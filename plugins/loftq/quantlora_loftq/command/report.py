"""What each layer lost, with and without LoftQ: JSON, and a picture where matplotlib is there."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from quantlora_loftq.command.recipe import Recipe

if TYPE_CHECKING:
    from quantlora_loftq.command.layer_work import LayerFacts

REPORT, PLOT = "loftq_report.json", "loftq_report.png"
SCHEMA = "quantlora.loftq/1"


def report_files(recipe: Recipe, layers: list[LayerFacts]) -> dict[str, Callable[[Path], object]]:
    """Writers of ``loftq_report.json`` and ``.png``, the layers in the order of their paths."""
    layers = sorted(layers, key=lambda layer: [_number(part) for part in layer.path.split(".")])
    report = {
        "schema": SCHEMA,
        "recipe": asdict(recipe),
        "layers": [asdict(layer) for layer in layers],
        "mean_quantized_error": _mean([layer.quantized_error for layer in layers]),
        "mean_loftq_error": _mean([layer.loftq_error for layer in layers]),
    }
    text = json.dumps(report, indent=2) + "\n"
    files: dict[str, Callable[[Path], object]] = {REPORT: lambda file: file.write_text(text)}
    return files | ({PLOT: partial(_plot, layers)} if find_spec("matplotlib") else {})


def _number(part: str) -> tuple[int, str]:
    return (int(part), "") if part.isdigit() else (-1, part)


def _mean(values: list[float]) -> float:
    return float(sum(values) / max(1, len(values)))


def _plot(layers: list[LayerFacts], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6.0, 0.08 * len(layers)), 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([layer.quantized_error for layer in layers], ".-", label="quantized")
    axes.plot([layer.loftq_error for layer in layers], ".-", label="quantized, with LoftQ")
    axes.set(xlabel="layer", ylabel="‖error‖ / ‖W‖", ylim=(0, None))
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120)
