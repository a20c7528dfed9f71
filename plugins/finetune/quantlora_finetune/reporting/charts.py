"""The pictures in ``report.html``, from the report's own figures: what is drawn is what is told."""

from __future__ import annotations

import math
from typing import Any

from quantlora import format_size
from quantlora_finetune.reporting.chart import BLUE, GRID, INK, ORANGE, new_figure, png, tidy
from quantlora_finetune.reporting.plot import running_mean

#: Field of a step, title, unit; whether a running mean helps to see where it goes.
_COURSES = (
    ("loss", "Loss", "nats per token", True),
    ("learning_rate", "Learning rate", "", False),
    ("gradient_norm", "Gradient norm, before clipping", "", True),
    ("tokens_per_second", "Speed", "tokens per second", True),
)


def course_chart(steps: list[dict[str, Any]]) -> bytes:
    """Loss, learning rate, gradient norm and speed by step, as a PNG."""
    figure = new_figure(9, 5.6)
    places = figure.subplots(2, 2).flat
    for axes, (field, title, unit, noisy) in zip(places, _COURSES, strict=True):
        x, y = [one["step"] for one in steps], [one[field] for one in steps]
        line = "o" if len(x) == 1 else "-"
        axes.plot(x, y, line, color=BLUE, alpha=0.3 if noisy else 1, linewidth=1.2, label="step")
        if noisy:
            axes.plot(x, running_mean(y), line, color=BLUE, linewidth=2, label="running mean")
        axes.set_ylim(bottom=0 if field != "loss" else None)
        axes.set(xlabel="step", ylabel=unit)
        tidy(axes, title)
        if field == "loss":
            axes.legend(frameon=False, fontsize=9)
    return png(figure)


def memory_chart(memory: dict[str, Any]) -> bytes:
    """Bytes by component, predicted and measured side by side, as a PNG."""
    rows = [("predicted", ORANGE), ("measured", BLUE)]
    rows = [(name, color) for name, color in rows if memory[name]]
    components = list(memory["predicted"])
    height = 0.8 / len(rows)
    figure = new_figure(9, 3.6)
    axes = figure.subplots()
    for place, (name, color) in enumerate(rows):
        values = [memory[name][one] for one in components]
        at = [i + (place - (len(rows) - 1) / 2) * height for i in range(len(components))]
        bars = axes.barh(at, values, height * 0.9, color=color, label=name)
        axes.bar_label(bars, [format_size(one) for one in values], padding=4, fontsize=8, color=INK)
    axes.set_yticks(range(len(components)), [one.replace("_", " ") for one in components])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    _count_in_bytes(axes, max(max(memory[name].values()) for name, _ in rows))
    tidy(axes, "Memory by component", grid="x")
    axes.spines["left"].set_color(GRID)
    axes.legend(frameon=False)
    return png(figure)


def _count_in_bytes(axes: Any, largest: int) -> None:
    """Ticks at round numbers of the unit that the largest bar is told in."""
    unit = 1024 ** min(3, int(math.log(max(1, largest), 1024)))
    step = 10 ** math.floor(math.log10(max(1, largest / unit)))
    step = step / 2 if largest / unit / step < 2.5 else step
    ticks = [i * step * unit for i in range(int(largest / unit / step) + 2)]
    axes.set_xticks(ticks, [format_size(one).replace(".0 ", " ") for one in ticks])
