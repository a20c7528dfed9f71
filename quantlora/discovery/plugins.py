"""Calling plugins, and keeping each one's faults to itself.

Whatever goes wrong with one plugin (an import error, an unknown hook, wrong arguments, a hook that
raises, a result of the wrong type, a taken name, an API too new) disables that plugin, with its
reason and one warning; the others work on. Each has a pluggy manager of its own, so that none can
stand in another's way.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import pluggy

from quantlora import hookspecs
from quantlora.discovery.entry_points import (
    DISABLE,
    PluginRecord,
    cause,
    find_plugins,
    kept_apart,
    sentence,
)

#: Set to 1 to print every hook call to stderr.
TRACE = "QUANTLORA_TRACE"

#: What comes with the core: registered directly, through the same hooks as everybody's.
BUILTIN = "builtin"


class Plugins:
    """The plugins of one environment. `records` keeps also those that were disabled."""

    def __init__(self, records: Iterable[PluginRecord]) -> None:
        self.records = list(records)
        self._managers: dict[str, pluggy.PluginManager] = {}
        for record in self.loaded:
            self._admit(record)

    @property
    def loaded(self) -> list[PluginRecord]:
        return [record for record in self.records if not record.error]

    @property
    def disabled(self) -> list[PluginRecord]:
        return [record for record in self.records if record.error]

    def collect(self, record: PluginRecord, hook: str) -> list[Any]:
        """The objects that one plugin returns from ``hook``; none if it fails."""
        if record.error:
            return []
        found: list[Any] = []
        with kept_apart(lambda error: record.disable(f"{hook}() failed: {cause(error)}")):
            results = getattr(self._managers[record.name].hook, hook)()
            found = [item for result in results for item in _listed(result)]
        return found

    def _admit(self, record: PluginRecord) -> None:
        with kept_apart(lambda error: record.disable(f"{sentence(error)}.")):
            if record.name in self._managers:
                raise ValueError(
                    f"another plugin is named {record.name!r}: uninstall one of the two, "
                    f"{DISABLE} would stop both"
                )
            _check_api(record.api)
            self._managers[record.name] = _manager(record)


def _check_api(api: Any) -> None:
    if isinstance(api, bool) or not isinstance(api, int):
        raise TypeError(f"its QUANTLORA_API must be an integer, got {api!r}")
    if api > hookspecs.API_VERSION:
        raise ValueError(
            f"it is written for plugin API {api}, this quantlora has "
            f"{hookspecs.API_VERSION}: upgrade quantlora"
        )


def _manager(record: PluginRecord) -> pluggy.PluginManager:
    manager = pluggy.PluginManager(hookspecs.GROUP)
    manager.add_hookspecs(hookspecs)
    if os.environ.get(TRACE) == "1":
        manager.trace.root.setwriter(
            lambda line: print(f"{record.name}: {line}", end="", file=sys.stderr)
        )
        manager.enable_tracing()
    manager.register(record.module, record.name)
    _check_hooks(manager.get_hookcallers(record.module) or [])
    return manager


def _check_hooks(callers: list[pluggy.HookCaller]) -> None:
    if not callers:
        raise ValueError("it implements no hook: mark its functions with quantlora.hookimpl")
    for caller in callers:
        optional = all(impl.optionalhook for impl in caller.get_hookimpls())
        if not caller.has_spec() and not optional:
            hooks = ", ".join(hookspecs.HOOKS)
            raise ValueError(f"unknown hook {caller.name!r}; the hooks are {hooks}")


def _listed(result: Any) -> list[Any]:
    if isinstance(result, (str, bytes)) or not isinstance(result, Iterable):
        raise TypeError(f"it must return a list of objects, got {type(result).__name__}")
    return list(result)


def _builtin() -> PluginRecord:
    from quantlora import __version__, builtin

    return PluginRecord(BUILTIN, "quantlora", __version__, builtin.__name__, module=builtin)


@lru_cache(maxsize=1)
def load_plugins() -> Plugins:
    """The plugins of this environment; loaded once per process."""
    return Plugins([_builtin(), *find_plugins()])
