"""What a plugin asks the environment report to look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

from quantlora.requirements import AnyRequirement

if TYPE_CHECKING:
    from torch import nn


class Status(str, Enum):
    """The three verdicts of ``python -m quantlora.env``."""

    READY = "READY"
    DEGRADED = "DEGRADED"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True)
class Note:
    """What a user should know before running into it, and what to do then.

    The error or warning that says it later takes its words from the same object.
    """

    text: str
    fix: str

    def __str__(self) -> str:
        return f"{self.text}\n{self.fix}"


@dataclass(frozen=True)
class Verdict:
    """One backend's state: why, what it costs, the command that fixes it; what else to know."""

    backend: str
    status: Status
    version: str | None = None
    reason: str = ""
    fix: str = ""
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class Check:
    """One backend as the report sees it.

    Args:
        backend: the quantizer's (or variant's, or initializer's) name.
        requires: what must be installed; the same tuple as the quantizer's ``requires``.
        degraded: looks at the machine without importing the library; returns a reason and a fix
            when the backend works only with a loss, else None.
        layer: makes a small layer of this backend, importing its library; ``--deep`` tries it. By
            default the quantizer packs one.
        fields: gives arguments of `wrap` for ``--deep``. By default those that choose the variant
            or initializer ``backend``; `LoraConfig.variant_fields` has those of a variant.
        notes: gives what users of this backend run into on this machine.
    """

    backend: str
    requires: tuple[AnyRequirement, ...] = ()
    degraded: Callable[[], tuple[str, str] | None] = field(default=lambda: None)
    layer: Callable[[], nn.Module] | None = None
    fields: Callable[[], Mapping[str, Any]] | None = None
    notes: Callable[[], Iterable[Note]] = tuple

    def run(self) -> Verdict:
        verdict = self._state()
        usable = verdict.status is not Status.UNAVAILABLE
        return replace(verdict, notes=tuple(self.notes())) if usable else verdict

    def _state(self) -> Verdict:
        found = [requirement.check() for requirement in self.requires]
        version = ", ".join(library.version for library in found if library.version) or None
        if missing := [library for library in found if not library]:
            reason = " ".join(library.reason for library in missing)
            fix = "\n".join(dict.fromkeys(library.fix for library in missing))
            return Verdict(self.backend, Status.UNAVAILABLE, version, reason, fix)
        if loss := self.degraded():
            return Verdict(self.backend, Status.DEGRADED, version, *loss)
        notes = " ".join(library.reason for library in found if library.reason)
        return Verdict(self.backend, Status.READY, version, notes)
