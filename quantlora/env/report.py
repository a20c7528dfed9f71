"""The report: everything that was found, as data. `docs/env.md` documents its JSON form."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from quantlora import __version__
from quantlora.checks import Note, Status, Verdict
from quantlora.discovery.diagnosis import diagnose
from quantlora.discovery.entry_points import PluginRecord
from quantlora.env.cuda import Accelerators
from quantlora.env.deep import Step, failed_step, run_deep
from quantlora.env.machine import Machine
from quantlora.env.packages import Token, package_versions
from quantlora.env.verdicts import BackendCheck, backend_checks, quiet_plugins, unknown_backend
from quantlora.merging.rounding import ROUNDING
from quantlora.requirements import AnyRequirement

#: Names the form of the JSON. A field may be added under one id; none is renamed or removed.
SCHEMA = "quantlora.env/1"


@dataclass(frozen=True)
class Plugin:
    """One plugin as the report shows it; ``error`` is empty unless it was disabled."""

    name: str
    distribution: str
    version: str
    api: int
    value: str
    error: str

    @classmethod
    def of(cls, record: PluginRecord) -> Plugin:
        api = record.api if isinstance(record.api, int) else 0
        return cls(
            record.name, record.distribution, record.version, api, record.value, record.error
        )


@dataclass(frozen=True)
class Backend:
    """One backend's verdict, the plugin that speaks for it, and what ``--deep`` tried."""

    plugin: str
    verdict: Verdict
    deep: tuple[Step, ...] = ()

    @property
    def usable(self) -> bool:
        return self.verdict.status is not Status.UNAVAILABLE

    def as_json(self) -> dict[str, Any]:
        return {
            "plugin": self.plugin,
            **asdict(self.verdict),
            "deep": [asdict(s) for s in self.deep],
        }


@dataclass(frozen=True)
class Report:
    machine: Machine
    accelerators: Accelerators
    packages: dict[str, str | None]
    plugins: tuple[Plugin, ...]
    backends: tuple[Backend, ...]
    token: Token
    notes: tuple[Note, ...] = (ROUNDING,)

    @property
    def exit_code(self) -> int:
        """0 when a backend is usable (READY or DEGRADED), else 1."""
        return 0 if any(backend.usable for backend in self.backends) else 1

    def as_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "quantlora": __version__,
            "machine": asdict(self.machine),
            "accelerators": asdict(self.accelerators),
            "packages": self.packages,
            "plugins": [asdict(plugin) for plugin in self.plugins],
            "backends": [backend.as_json() for backend in self.backends],
            "hugging_face_token": asdict(self.token),
            "notes": [asdict(note) for note in self.notes],
        }


def make_report(backend: str | None = None, deep: bool = False) -> Report:
    """Look at this machine; ``backend`` restricts the verdicts to one, ``deep`` runs them."""
    plugins = quiet_plugins()
    checks = backend_checks(plugins)
    chosen = [offer for offer in checks if backend in (None, offer.check.backend)]
    backends = [_backend(offer, deep) for offer in chosen]
    if not chosen and backend is not None:
        backends = [Backend("", unknown_backend(backend, checks, plugins))]
    return Report(
        Machine.look(),
        Accelerators.look(),
        package_versions(),
        tuple(Plugin.of(record) for record in plugins.records),
        tuple(backends),
        Token.look(),
    )


def _backend(offer: BackendCheck, deep: bool) -> Backend:
    backend = Backend(offer.plugin, offer.run())
    if not deep or not backend.usable:
        return backend
    steps = run_deep(backend.verdict.backend)
    if bad := failed_step(steps):
        return Backend(offer.plugin, _failed(backend.verdict, bad, offer.check.requires), steps)
    return replace(backend, deep=steps)


def _failed(verdict: Verdict, step: Step, requires: tuple[AnyRequirement, ...]) -> Verdict:
    """UNAVAILABLE, with the remedy that the error names, or that of an error that is known."""
    reason, fix = f"--deep: step {step.name!r} failed: {step.error}", step.fix
    if not fix and (found := diagnose(step.error, requires)):
        reason, fix = f"{reason} This means that {found.cause}.", found.fix
    return replace(verdict, status=Status.UNAVAILABLE, reason=reason, fix=fix)
