"""Finding plugins, and keeping each one's faults to itself.

Every entry point of the group is loaded alone. Whatever goes wrong with one (an import error, an
unknown hook, wrong arguments, a hook that raises, a result of the wrong type, a taken name, an API
too new) puts that plugin aside with its reason and one warning; the others work on.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from types import ModuleType
from typing import Any

import pluggy

from quantlora import hookspecs
from quantlora.errors import PluginWarning

#: Comma-separated plugin names that are not to be loaded.
DISABLE = "QUANTLORA_DISABLE"
#: Set to 1 to print every hook call to stderr.
TRACE = "QUANTLORA_TRACE"

#: What comes with the core: registered directly, through the same hooks as everybody's.
BUILTIN = "builtin"


@dataclass
class PluginRecord:
    """One plugin: where it comes from and, if it was put aside, why."""

    name: str
    distribution: str
    version: str
    value: str
    error: str = ""
    module: ModuleType | None = field(default=None, repr=False)

    @property
    def api(self) -> int:
        return int(getattr(self.module, "QUANTLORA_API", hookspecs.API_VERSION))

    def put_aside(self, error: str) -> None:
        """Take the plugin out of use; only the first reason is kept and warned about."""
        if self.error:
            return
        self.error = error
        warnings.warn(
            f"quantlora plugin {self.name!r} ({self.value}, from {self.distribution} "
            f"{self.version}) is put aside: {error} Everything else works on; "
            f"{DISABLE}={self.name} silences this.",
            PluginWarning,
            stacklevel=2,
        )


class Plugins:
    """The plugins of one environment. `records` keeps also those that were put aside."""

    def __init__(self, records: Iterable[PluginRecord]) -> None:
        self.manager = pluggy.PluginManager(hookspecs.GROUP)
        self.manager.add_hookspecs(hookspecs)
        if os.environ.get(TRACE) == "1":
            self.manager.trace.root.setwriter(lambda line: print(line, end="", file=sys.stderr))
            self.manager.enable_tracing()
        self.records = list(records)
        for record in self.records:
            if not record.error:
                self._register(record)

    @property
    def loaded(self) -> list[PluginRecord]:
        return [record for record in self.records if not record.error]

    @property
    def aside(self) -> list[PluginRecord]:
        return [record for record in self.records if record.error]

    def collect(self, hook: str) -> Iterator[tuple[PluginRecord, Any]]:
        """The objects that each plugin returns from ``hook``, with the plugin they come from."""
        for record in self.loaded:
            for item in self._call(record, hook):
                yield record, item

    def _call(self, record: PluginRecord, hook: str) -> list[Any]:
        others = [p for p in self.manager.get_plugins() if p is not record.module]
        try:
            results = self.manager.subset_hook_caller(hook, others)()
            return [item for result in results for item in _listed(result)]
        except Exception as error:
            record.put_aside(f"{hook}() failed: {type(error).__name__}: {error}.")
            return []

    def _register(self, record: PluginRecord) -> None:
        try:
            if record.api > hookspecs.API_VERSION:
                raise ValueError(
                    f"it is written for plugin API {record.api}, this quantlora has "
                    f"{hookspecs.API_VERSION}: upgrade quantlora"
                )
            self.manager.register(record.module, record.name)
            self._check_hooks(record)
        except Exception as error:
            if self.manager.has_plugin(record.name):
                self.manager.unregister(name=record.name)
            record.put_aside(f"{_sentence(error)}.")

    def _check_hooks(self, record: PluginRecord) -> None:
        callers = self.manager.get_hookcallers(record.module) or []
        if not callers:
            raise ValueError("it implements no hook: mark its functions with quantlora.hookimpl")
        for caller in callers:
            if not caller.has_spec():
                known = ", ".join(hookspecs.HOOKS)
                raise ValueError(f"unknown hook {caller.name!r}; the hooks are {known}")


def _listed(result: Any) -> list[Any]:
    if isinstance(result, (str, bytes)) or not isinstance(result, Iterable):
        raise TypeError(f"it must return a list of objects, got {type(result).__name__}")
    return list(result)


def _sentence(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _disabled() -> set[str]:
    return {name.strip() for name in os.environ.get(DISABLE, "").split(",") if name.strip()}


def _load(entry: importlib.metadata.EntryPoint) -> PluginRecord:
    distribution = entry.dist.name if entry.dist else "unknown"
    version = entry.dist.version if entry.dist else "unknown"
    record = PluginRecord(entry.name, distribution, version, entry.value)
    if entry.name in _disabled():
        record.error = f"disabled by {DISABLE}."
        return record
    try:
        record.module = entry.load()
    except (Exception, SystemExit) as error:
        record.put_aside(f"it cannot be imported: {type(error).__name__}: {_sentence(error)}.")
    return record


def _builtin() -> PluginRecord:
    from quantlora import builtin

    version = importlib.metadata.version("quantlora")
    return PluginRecord(BUILTIN, "quantlora", version, builtin.__name__, module=builtin)


def _in_order(records: Iterable[PluginRecord]) -> list[PluginRecord]:
    """By distribution, ours first, then by name: entry points come in no defined order."""
    return sorted(records, key=lambda r: (r.distribution != "quantlora", r.distribution, r.name))


@lru_cache(maxsize=1)
def load_plugins() -> Plugins:
    """The plugins of this environment; loaded once per process."""
    entries = importlib.metadata.entry_points(group=hookspecs.GROUP)
    unique = {(entry.name, entry.value): entry for entry in entries}.values()
    return Plugins([_builtin(), *_in_order(_load(entry) for entry in unique)])
