"""``loss.png``: the training loss by step, and what it did to the held-out text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quantlora_finetune.reporting.chart import BLUE, ORANGE, new_figure, png, tidy
from quantlora_finetune.reporting.report import Report


def plot_losses(file: Path, report: Report) -> None:
    """Draw the losses, their running mean, and the held-out loss at both ends."""
    figure = new_figure(8, 4.5)
    axes = figure.subplots()
    before, after = report.before, report.after
    steps = [step.step for step in report.training.steps]
    losses = [step.loss for step in report.training.steps]
    axes.plot(steps, losses, color=BLUE, alpha=0.3, linewidth=1, label="each step")
    axes.plot(steps, running_mean(losses), color=BLUE, linewidth=2, label="running mean")
    ends = [math.log(before.perplexity), math.log(after.perplexity)]
    # Two points, and no line: nothing was measured between them.
    axes.plot([0, steps[-1]], ends, "o", color=ORANGE, label="held-out text, before and after")
    _name_ends(axes, (0, before.perplexity), (steps[-1], after.perplexity))
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    tidy(axes, report.title)
    axes.legend(frameon=False)
    file.write_bytes(png(figure))


def _name_ends(axes: Any, first: tuple[int, float], last: tuple[int, float]) -> None:
    """The perplexities, beside their points."""
    positions = {first: ((8, 8), "left"), last: ((0, -18), "right")}
    for (step, perplexity), (offset, side) in positions.items():
        axes.annotate(
            f"perplexity {perplexity:.1f}",
            (step, math.log(perplexity)),
            xytext=offset,
            textcoords="offset points",
            ha=side,
            color=ORANGE,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )


def running_mean(values: Sequence[float], weight: float = 0.85) -> list[float]:
    """Exponential mean without the bias of its start (as in Adam, arXiv:1412.6980, sec. 3)."""
    means, mean = [], 0.0
    for count, value in enumerate(values, start=1):
        mean = weight * mean + (1 - weight) * value
        means.append(mean / (1 - weight**count))
    return means
