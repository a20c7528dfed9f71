"""One verdict for every backend, from the plugins' own checks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from quantlora.checks import Check, Status, Verdict
from quantlora.discovery.entry_points import PluginRecord, cause, kept_apart, shown
from quantlora.discovery.plugins import Plugins, load_plugins
from quantlora.errors import PluginWarning
from quantlora.suggestions import unknown

HOOK = "quantlora_checks"


@dataclass(frozen=True)
class BackendCheck:
    """A plugin's check, with the plugin it comes from."""

    plugin: str
    check: Check

    def run(self) -> Verdict:
        """The check's verdict; a check that raises is a verdict too."""
        failed: list[Verdict] = []
        with kept_apart(lambda error: failed.append(self._failed(error))):
            return self.check.run()
        return failed[0]

    def _failed(self, error: BaseException) -> Verdict:
        return Verdict(
            self.check.backend,
            Status.UNAVAILABLE,
            reason=f"its check failed: {cause(error)}",
            fix=f"report it to {self.plugin}",
        )


def quiet_plugins() -> Plugins:
    """The plugins, without the warnings about those disabled: the report lists them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)
        return load_plugins()


def backend_checks(plugins: Plugins) -> list[BackendCheck]:
    """The checks of all plugins; one that returns something else is disabled."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)
        return [check for record in plugins.loaded for check in _checks(plugins, record)]


def _checks(plugins: Plugins, record: PluginRecord) -> Iterator[BackendCheck]:
    found = plugins.collect(record, HOOK)
    wrong = [item for item in found if not isinstance(item, Check)]
    if wrong:
        record.disable(f"{HOOK}() must return Check objects, got {shown(wrong[0])}.")
        return
    for item in found:
        yield BackendCheck(record.name, item)


def unknown_backend(name: str, checks: list[BackendCheck], plugins: Plugins) -> Verdict:
    """The verdict on a backend that no plugin speaks for, with what may explain it."""
    reason = unknown("backend", name, [offer.check.backend for offer in checks])
    disabled = [
        f"Plugin {plugin.name!r} is disabled: {plugin.error}" for plugin in plugins.disabled
    ]
    return Verdict(name, Status.UNAVAILABLE, None, "\n".join([reason, *disabled]))
