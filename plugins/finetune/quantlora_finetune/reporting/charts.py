"""The pictures in ``report.html``, from the report's own figures: what is drawn is what is told.

Each is about as wide as a phone's screen, so that its letters are read there as they are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantlora import MemoryUse, format_size
from quantlora_finetune.reporting.chart import BLUE, GRID, INK, ORANGE, new_figure, png, tidy
from quantlora_finetune.reporting.plot import running_mean
from quantlora_finetune.training.trainer import Step

#: Inches; a phone shows 390 of CSS's pixels, of which the page's margins leave 358 (3.7 inches).
_WIDTH = 4.4
_COLORS = {"predicted": ORANGE, "measured": BLUE}


@dataclass(frozen=True)
class Chart:
    """A picture, and its title for those who do not see it."""

    title: str
    png: bytes


@dataclass(frozen=True)
class _Course:
    """A field of `Step`; ``noisy`` where a running mean helps to see where it goes."""

    field: str
    title: str
    unit: str
    noisy: bool = True


_COURSES = (
    _Course("loss", "Loss", "nats per token"),
    _Course("learning_rate", "Learning rate", "", noisy=False),
    _Course("gradient_norm", "Gradient norm, before clipping", ""),
    _Course("tokens_per_second", "Speed", "tokens per second"),
)


def course_charts(steps: Sequence[Step]) -> list[Chart]:
    """Loss, learning rate, gradient norm and speed by step, each a PNG."""
    return [Chart(course.title, _drawn(course, steps)) for course in _COURSES]


def _drawn(course: _Course, steps: Sequence[Step]) -> bytes:
    figure = new_figure(_WIDTH, 2.75)
    axes = figure.subplots()
    x, y = [step.step for step in steps], [getattr(step, course.field) for step in steps]
    line, alpha = "o" if len(x) == 1 else "-", 0.3 if course.noisy else 1
    axes.plot(x, y, line, color=BLUE, alpha=alpha, linewidth=1.2, label="step")
    if course.noisy:
        axes.plot(x, running_mean(y), line, color=BLUE, linewidth=2, label="running mean")
    if course.field != "loss":
        axes.set_ylim(0, 1.08 * max(filter(math.isfinite, y), default=0) or 1)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="step", ylabel=course.unit)
    tidy(axes, course.title)
    if course.field == "loss":
        axes.legend(frameon=False, fontsize=9)
    return png(figure)


def memory_chart(memory: Mapping[str, MemoryUse]) -> Chart:
    """Bytes by component, those of ``predicted`` and ``measured`` side by side, as a PNG."""
    names = [name for name, _ in next(iter(memory.values())).rows()[:-1]]
    figure = new_figure(_WIDTH, 3.9)
    axes = figure.subplots()
    for position, (name, use) in enumerate(memory.items()):
        _draw_bars(axes, name, use, position, len(memory))
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(x=0.25)
    _count_in_bytes(axes, max(max(use.as_json().values()) for use in memory.values()))
    title = "Memory by component"
    tidy(axes, title, grid="x")
    axes.spines["left"].set_color(GRID)
    figure.legend(frameon=False, loc="outside lower center", ncols=len(memory))
    return Chart(title, png(figure))


def _draw_bars(axes: Any, name: str, use: MemoryUse, position: int, count: int) -> None:
    """One bar for each component, the ``position``-th of ``count`` that stand side by side."""
    values, height = list(use.as_json().values()), 0.8 / count
    at = [i + (position - (count - 1) / 2) * height for i in range(len(values))]
    bars = axes.barh(at, values, height * 0.9, color=_COLORS[name], label=name)
    axes.bar_label(bars, [format_size(value) for value in values], padding=4, fontsize=9, color=INK)


def _count_in_bytes(axes: Any, largest: int) -> None:
    """At most four ticks, at round numbers of the unit that the largest bar is told in."""
    unit = 1024 ** min(3, int(math.log(max(1, largest), 1024)))
    step = 10 ** math.floor(math.log10(max(1, largest / unit)))
    step = next(step * factor for factor in (0.5, 1, 2, 5) if largest / unit / (step * factor) < 3)
    ticks = [i * step * unit for i in range(int(largest / unit / step) + 2)]
    axes.set_xticks(ticks, [format_size(tick).replace(".0 ", " ") for tick in ticks])
