"""What `explain` returns: rows for programs, a table for people."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from quantlora.html_tables import html_lines, html_table

_HEAD = ("path", "layer", "shape", "format", "wrapper", "r", "alpha", "why not")


@dataclass(frozen=True)
class LayerRow:
    """One linear layer of the model.

    Args:
        path: its place.
        layer: its class.
        shape: ``(out_features, in_features)``, None where nobody knows the layer.
        format: the format it will be in; with an arrow where it is quantized first.
        details: what the format says of the layer now: bits, dtype and so on.
        wrapper: the LoRA class it gets; empty when it gets none.
        r, lora_alpha: the adapter's rank and alpha; None when it gets none.
        reason: why it gets none; `wrap` would stop there if ``fails``.
        fails: whether it is targeted and cannot be wrapped.
    """

    path: str
    layer: str
    shape: tuple[int, int] | None
    format: str
    details: str = ""
    wrapper: str = ""
    r: int | None = None
    lora_alpha: float | None = None
    reason: str = ""
    fails: bool = False


@dataclass(frozen=True)
class Explanation:
    """What `explain` found: one row per linear layer, and problems with the call as a whole.

    ``warnings`` are what `wrap` would get through with, and say; ``inference`` is how the packed
    layers compute while text is generated on a CPU.
    """

    rows: tuple[LayerRow, ...]
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    inference: str = ""

    @property
    def ok(self) -> bool:
        """Whether `wrap` would get through."""
        return not self.problems and not any(row.fails for row in self.rows)

    @property
    def wrapped(self) -> tuple[LayerRow, ...]:
        """The rows that get an adapter."""
        return tuple(row for row in self.rows if row.wrapper)

    def __str__(self) -> str:
        lines = _aligned([_HEAD, *(_cells(row) for row in self.rows)])
        return "\n".join([*lines, *self._remarks()])

    def _repr_html_(self) -> str:
        return html_table(_HEAD, map(_cells, self.rows)) + html_lines(self._remarks())

    def _remarks(self) -> Iterator[str]:
        """What stands below the table."""
        yield f"{len(self.wrapped)} of {len(self.rows)} linear layers get an adapter."
        if self.inference:
            yield self.inference
        yield from (f"wrap would stop: {problem}" for problem in self.problems)
        yield from (f"wrap would warn: {warning}" for warning in self.warnings)


def _cells(row: LayerRow) -> tuple[str, ...]:
    shape = " x ".join(map(str, row.shape)) if row.shape else "?"
    rank = "" if row.r is None else str(row.r)
    alpha = "" if row.lora_alpha is None else f"{row.lora_alpha:g}"
    first = row.reason.partition("\n")[0].removeprefix(f"{row.path}: ")
    reason = f"wrap would stop: {first}" if row.fails else first
    form = f"{row.format} ({row.details})" if row.details else row.format
    return row.path, row.layer, shape, form, row.wrapper, rank, alpha, reason


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
