"""The tables of ``quantlora inspect``."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from quantlora.inspection.report import Inspection, Kind
from quantlora.units import format_size

#: Cells of the longest bar.
_WIDTH = 24
#: Adapters are kept and saved in float32.
_ADAPTER_BYTES = 4


def show(found: Inspection, console: Console) -> None:
    for line in _head(found):
        console.print(Text(line), soft_wrap=True)
    console.print(_layers(found))
    console.print(_parts(found))
    console.print(_memory(found))
    for problem in (found.problem, *found.problems):
        if problem:
            console.print(Text.assemble(("wrap would stop: ", "bold red"), problem), soft_wrap=True)
    for warning in found.warnings:
        console.print(Text.assemble(("wrap would warn: ", "yellow"), warning), soft_wrap=True)
    if not (found.problem or found.problems):
        console.print(Text.assemble("Next: ", ("quantlora --help", "bold")), soft_wrap=True)


def _head(found: Inspection) -> Iterator[str]:
    yield f"{found.model}: {found.architecture}, {found.parameters:,} parameters"
    if found.experts:
        yield f"experts: {found.experts:,} of them, {found.experts / found.parameters:.1%}"
    if found.checkpoint is None:
        yield f"stored as {found.dtype}"
        return
    settings = ", ".join(f"{key} {value}" for key, value in found.checkpoint.settings.items())
    state = "not available here" if found.problem else "available"
    yield f"stored in format {found.checkpoint.name} ({settings}); its backend is {state}"


def _layers(found: Inspection) -> Table:
    table = Table(title="Linear layers", title_justify="left", title_style="bold")
    for column in ("name", "class", "shape", "count", "weights", "format", "LoRA"):
        table.add_column(column, overflow="fold")
    for kind in found.kinds:
        table.add_row(*(Text(cell) for cell in _cells(kind)))
    adapter = found.adapter_parameters
    table.caption = (
        f"adapter: {adapter:,} parameters, {format_size(adapter * _ADAPTER_BYTES)} as a file"
    )
    return table


def _cells(kind: Kind) -> tuple[str, ...]:
    shape = " x ".join(map(str, kind.shape)) if kind.shape else "?"
    plan = f"r={kind.r}" if kind.wrapper else kind.reason.partition(";")[0]
    weights = f"{kind.parameters:,}"
    return kind.name, kind.layer, shape, str(kind.count), weights, kind.format, plan


def _parts(found: Inspection) -> Table:
    """A picture: the bars of all blocks in a row that are alike are one, as long as their sum."""
    table = Table(title="Bytes by part, as stored", title_justify="left", title_style="bold")
    for column in ("part", "bytes", ""):
        table.add_column(column, overflow="fold")
    most = max((part.count * part.bytes for part in found.parts), default=1) or 1
    for part in found.parts:
        size = format_size(part.bytes)
        text = size if part.count == 1 else f"{part.count} x {size}"
        bar = "█" * max(round(_WIDTH * part.count * part.bytes / most), 1)
        table.add_row(Text(part.name), Text(text), Text(bar, style="blue"))
    return table


def _memory(found: Inspection) -> Table:
    table = Table(
        title="Memory of the weights, with the wrapped layers in each format",
        title_justify="left",
        title_style="bold",
        caption="the other parameters at 16 bits; ~: nominal, without scales",
    )
    for column in ("format", "bits", "bytes per weight", "all weights", "here"):
        table.add_column(column)
    for size in found.sizes:
        sign = "" if size.measured else "~"
        cost, total = (
            f"{sign}{size.bytes_per_weight:.3f}",
            f"{sign}{format_size(found.memory(size))}",
        )
        here = "no: see quantlora env" if size.problem else "yes"
        table.add_row(*(Text(cell) for cell in (size.format, str(size.bits), cost, total, here)))
    return table
