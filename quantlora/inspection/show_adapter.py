"""The table of ``quantlora inspect`` for an adapter."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from quantlora.inspection.adapter_folder import AdaptedKind, AdapterInspection
from quantlora.units import format_size


def show_adapter(found: AdapterInspection, console: Console) -> None:
    for line in _head(found):
        console.print(Text(line), soft_wrap=True)
    table = Table(title="Adapted layers", title_justify="left", title_style="bold")
    for column in ("name", "count", "shape", "rank", "parameters", "update", "largest in"):
        table.add_column(column, overflow="fold")
    for kind in found.kinds:
        table.add_row(*map(Text, _cells(kind)))
    table.caption = "update: mean norm of s · B · A; 0 means that nothing was trained"
    console.print(table)
    if found.others:
        console.print(Text(f"also in the file: {', '.join(found.others)}"), soft_wrap=True)
    load = f"quantlora.load_adapter(model, {found.folder!r})"
    console.print(Text(f"next: quantlora chat {found.folder}, or {load}"), soft_wrap=True)


def _head(found: AdapterInspection) -> Iterator[str]:
    kind = {"lora": "LoRA", "dora": "DoRA"}.get(found.variant, found.variant)
    scale = "rsLoRA, " if found.use_rslora else ""
    yield f"{found.folder}: {kind} adapter, {scale}rank {found.r}, alpha {found.lora_alpha:g}"
    yield f"base: {found.base or 'not named'}" + (
        f"; task: {found.task_type}" * bool(found.task_type)
    )
    size = format_size(found.bytes)
    yield f"{found.parameters:,} parameters, {size} in {found.dtype}"
    for text in found.trained_on:
        yield f"trained on {text}"


def _cells(kind: AdaptedKind) -> Iterator[str]:
    least, most = kind.ranks
    yield kind.name
    yield str(kind.count)
    yield " x ".join(map(str, kind.shape))
    yield str(most) if least == most else f"{least} to {most}"
    yield f"{kind.parameters:,}"
    yield f"{kind.update:.3g}"
    yield kind.largest
