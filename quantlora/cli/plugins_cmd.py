"""``quantlora plugins``: what each plugin offers, and why any was disabled."""

from __future__ import annotations

import json as json_format
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from quantlora.discovery.entry_points import PluginRecord
    from quantlora.discovery.registration import Registry

#: Names the form of the JSON; fields may be added under one id.
SCHEMA = "quantlora.plugins/1"


@dataclass(frozen=True)
class PluginRow:
    """One plugin; ``error`` is empty unless it was disabled, and the lists are empty then."""

    name: str
    distribution: str
    version: str
    value: str
    error: str
    quantizers: list[str]
    variants: list[str]
    initializers: list[str]
    checks: list[str]

    @property
    def offers(self) -> str:
        kinds = {
            "formats": self.quantizers,
            "variants": self.variants,
            "initializers": self.initializers,
        }
        return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names)


def plugins(
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the plugins: what each offers, and those disabled with the reason."""
    from quantlora.env.clean_output import strays_to_stderr

    with strays_to_stderr():
        rows = plugin_rows()
    if json:
        data = {"schema": SCHEMA, "plugins": [asdict(row) for row in rows]}
        typer.echo(json_format.dumps(data, indent=2))
    else:
        _show(rows)


def plugin_rows() -> list[PluginRow]:
    """All plugins, with the names that users type for what they offer."""
    import warnings

    from quantlora.discovery.registration import registry
    from quantlora.env.verdicts import backend_checks
    from quantlora.errors import PluginWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)  # the list says it
        plugin_registry = registry()
        checks = [
            (offer.plugin, offer.check.backend) for offer in backend_checks(plugin_registry.plugins)
        ]
    return [_row(record, plugin_registry, checks) for record in plugin_registry.plugins.records]


def _row(
    record: PluginRecord, plugin_registry: Registry, checks: list[tuple[str, str]]
) -> PluginRow:
    from quantlora.discovery.offers import INITIALIZERS, QUANTIZERS, WRAPPERS

    def names(hook: str) -> list[str]:
        offers = [
            offer
            for offer in plugin_registry.offers
            if offer.record is record and offer.hook == hook
        ]
        return list(dict.fromkeys(offer.name for offer in offers))

    return PluginRow(
        record.name,
        record.distribution,
        record.version,
        record.value,
        record.error,
        names(QUANTIZERS),
        names(WRAPPERS),
        names(INITIALIZERS),
        [] if record.error else [backend for plugin, backend in checks if plugin == record.name],
    )


def _show(rows: list[PluginRow]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for column in ("plugin", "from", "state", "offers"):
        table.add_column(column, overflow="fold")
    for row in rows:
        state = Text("disabled", "red") if row.error else Text("loaded", "green")
        source = f"{row.distribution} {row.version}\n{row.value}"
        table.add_row(Text(row.name), Text(source), state, Text(row.error or row.offers))
    Console(highlight=False).print(table)
