"""``loss.png``: the training loss by step, and what it did to the held-out text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from quantlora.finetune.evaluation import Measurement
from quantlora.finetune.trainer import Training

_LINE, _HELD_OUT, _INK = "#1f5fa8", "#c2571a", "#333333"


def plot_losses(
    file: Path, title: str, training: Training, before: Measurement, after: Measurement
) -> None:
    """Draw the losses, their running mean, and the held-out loss at both ends."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    steps = [step for step, _ in training.losses]
    losses = [loss for _, loss in training.losses]
    axes.plot(steps, losses, color=_LINE, alpha=0.3, linewidth=1, label="each step")
    axes.plot(steps, running_mean(losses), color=_LINE, linewidth=2, label="running mean")
    ends = [math.log(before.perplexity), math.log(after.perplexity)]
    axes.plot([0, steps[-1]], ends, "o--", color=_HELD_OUT, linewidth=1, label="held-out text")
    for x, one, (dx, dy, side) in (
        (0, before, (8, 8, "left")),
        (steps[-1], after, (0, -18, "right")),
    ):
        axes.annotate(
            f"perplexity {one.perplexity:.1f}",
            (x, math.log(one.perplexity)),
            xytext=(dx, dy),
            textcoords="offset points",
            ha=side,
            color=_HELD_OUT,
        )
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.set_title(title, loc="left", fontsize=11, color=_INK)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(file, dpi=150)


def running_mean(values: Sequence[float], weight: float = 0.85) -> list[float]:
    """Exponential mean without the bias of its start (as in Adam, arXiv:1412.6980, sec. 3)."""
    means, mean = [], 0.0
    for count, value in enumerate(values, start=1):
        mean = weight * mean + (1 - weight) * value
        means.append(mean / (1 - weight**count))
    return means
