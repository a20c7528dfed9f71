"""The look that all pictures of a run share."""

from __future__ import annotations

import io
from typing import Any

BLUE, ORANGE, INK, GRID = "#1f5fa8", "#c2571a", "#333333", "#dddddd"


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure, in inches; it belongs to no window."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def tidy(axes: Any, title: str, grid: str = "y") -> None:
    """Title at the left, light lines behind the data, no box around it."""
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def png(figure: Any) -> bytes:
    """``figure`` as a file that browsers show sharply on dense screens too."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    return content.getvalue()
