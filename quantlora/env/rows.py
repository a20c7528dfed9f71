"""The report as titled rows of text: what every form of it shows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from quantlora import __version__
from quantlora.env.report import Backend, Report

NOT_INSTALLED = "not installed"


@dataclass(frozen=True)
class Section:
    """A titled table."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def sections(report: Report) -> list[Section]:
    """All tables of the report, the verdicts last: the end is what a terminal shows."""
    return [
        Section("Machine", ("", ""), tuple(_machine(report))),
        Section("Packages", ("package", "version"), tuple(_packages(report))),
        Section("Plugins", ("plugin", "from", "API", "state"), tuple(_plugins(report))),
        Section("Good to know", ("about", "what happens", "what to do"), tuple(_notes(report))),
        Section(
            "Backends",
            ("backend", "verdict", "version", "why"),
            tuple(_verdict(backend) for backend in report.backends),
        ),
    ]


def remedies(report: Report) -> list[tuple[str, str]]:
    """``(whom it helps, what to type)``, commands kept whole so that they can be copied."""
    notes = [(note.text, note.fix) for note in report.accelerators.notes]
    fixes = [(backend.verdict.backend, backend.verdict.fix) for backend in report.backends]
    return [(whom, fix) for whom, fix in (*fixes, *notes) if fix]


def summary(report: Report) -> str:
    """One line: which backends can be used here, which cannot."""
    names = {
        good: ", ".join(
            backend.verdict.backend for backend in report.backends if backend.usable is good
        )
        for good in (True, False)
    }
    return f"usable here: {names[True] or 'none'}; not usable: {names[False] or 'none'}"


def _machine(report: Report) -> Iterable[tuple[str, str]]:
    machine, accelerators = report.machine, report.accelerators
    yield "quantlora", __version__
    yield "system", f"{machine.system}, {machine.architecture}, Python {machine.python}"
    yield "processor", f"{machine.cpu}, {machine.cores or '?'} cores usable"
    yield "instruction sets", ", ".join(f"{k}: {_known(v)}" for k, v in machine.flags.items())
    yield "memory", f"{machine.memory_gib} GiB" if machine.memory_gib else "unknown"
    for device in accelerators.devices:
        memory = f", {device.memory_gib} GiB" if device.memory_gib else ""
        driver = f", driver {device.driver}" if device.driver else ""
        capability = f", compute capability {device.capability}" if device.capability else ""
        yield f"accelerator ({device.kind})", f"{device.name}{memory}{driver}{capability}"
    if not accelerators.devices:
        yield "accelerator", "none found"
    yield "CUDA", f"driver: {accelerators.driver_cuda or 'none'}; torch built for: {_build(report)}"
    yield "Hugging Face token", report.token.text


def _known(flag: bool | None) -> str:
    return {True: "yes", False: "no", None: "unknown"}[flag]


def _build(report: Report) -> str:
    build = report.accelerators.torch
    if build.hip:
        return f"ROCm {build.hip}"
    return build.cuda or "CPU only"


def _packages(report: Report) -> Iterable[tuple[str, str]]:
    for name, version in report.packages.items():
        yield name, version or NOT_INSTALLED


def _plugins(report: Report) -> Iterable[tuple[str, ...]]:
    for plugin in report.plugins:
        state = f"disabled: {plugin.error}" if plugin.error else "loaded"
        yield plugin.name, f"{plugin.distribution} {plugin.version}", str(plugin.api), state


def _notes(report: Report) -> Iterable[tuple[str, ...]]:
    for note in report.notes:
        yield "every backend", note.text, note.fix
    for backend in report.backends:
        for note in backend.verdict.notes:
            yield backend.verdict.backend, note.text, note.fix


def _verdict(backend: Backend) -> tuple[str, ...]:
    verdict = backend.verdict
    done = [step.seconds for step in backend.deep if step.ok]
    tried = f"tried: {len(done)} steps in {sum(done):.1f} s" if done else ""
    why = "\n".join(part for part in (verdict.reason, tried) if part)
    return verdict.backend, verdict.status.value, verdict.version or "", why
