"""Detectors: is a library here, and is its version one we can work with?

A detector reads package metadata only. It never imports the library and never raises: it returns
an `Availability`, which is truthy or not and carries the reason and the command that fixes it.
This module imports neither torch nor any plugin, so the environment report stays fast.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache

from packaging.requirements import Requirement as Specifier

from quantlora.errors import MissingLibraryError


@dataclass(frozen=True)
class Availability:
    """What a detector found: ``ok``, the ``version`` if any, else ``reason`` and ``fix``."""

    name: str
    ok: bool
    version: str | None = None
    reason: str = ""
    fix: str = ""

    def __bool__(self) -> bool:
        return self.ok

    def require(self) -> None:
        """Raise `MissingLibraryError` (an ImportError) unless available."""
        if not self.ok:
            raise MissingLibraryError(f"{self.reason}\n{self.fix}" if self.fix else self.reason)


@dataclass(frozen=True)
class Requirement:
    """One library with a version range, as pip writes it.

    Args:
        spec: e.g. ``"gptqmodel>=2.0.0"``.
        fix: the command to type; by default a plain ``pip install`` of ``spec``.
        missing: text used when the library is not installed.
        incompatible: text used when its version is outside the range; may use ``{found}``.
    """

    spec: str
    fix: str = ""
    missing: str = ""
    incompatible: str = ""

    def __post_init__(self) -> None:
        Specifier(self.spec)  # a wrong one fails here, so that `check` never does

    @property
    def library(self) -> str:
        return Specifier(self.spec).name

    def check(self) -> Availability:
        return _detect(self)

    def _found(self, version: str) -> Availability:
        if Specifier(self.spec).specifier.contains(version, prereleases=True):
            return Availability(self.library, True, version)
        default = f"{self.library} {version} is installed, but {self.spec} is needed."
        reason = self.incompatible.format(found=version) if self.incompatible else default
        return Availability(self.library, False, version, reason, self._command())

    def _absent(self) -> Availability:
        reason = self.missing or f"{self.library} is not installed."
        return Availability(self.library, False, None, reason, self._command())

    def _command(self) -> str:
        return self.fix or f'pip install "{self.spec}"'


@dataclass(frozen=True)
class AllOf:
    """Every part is needed; the first one missing is reported."""

    parts: tuple[AnyRequirement, ...]

    def check(self) -> Availability:
        found = [part.check() for part in self.parts]
        for library in found:
            if not library:
                return library
        return Availability(_names(found, " and "), True, _versions(found))


@dataclass(frozen=True)
class AnyOf:
    """One part is enough; the first available one is reported, else all reasons.

    A library that is here beside it and does not fit is named too.

    Args:
        parts: in the order of preference.
        order: why in this order; told where several are available.
    """

    parts: tuple[AnyRequirement, ...]
    order: str = ""

    def check(self) -> Availability:
        found = [part.check() for part in self.parts]
        available = [library for library in found if library]
        if available:
            choice = self._choice(available) if len(available) > 1 else available[0].reason
            pairs = zip(self.parts, found, strict=True)
            unfit = [library.reason for part, library in pairs if not library and _installed(part)]
            return replace(available[0], reason=" ".join(filter(None, [choice, *unfit])))
        reason = " Or: ".join(library.reason for library in found)
        fix = "\n   or: ".join(library.fix for library in found)
        return Availability(_names(found, " or "), False, _versions(found), reason, fix)

    def _choice(self, available: list[Availability]) -> str:
        both = " and ".join(f"{library.name} {library.version}" for library in available)
        return f"{both} are installed: {self.order or f'{available[0].name} is used'}."


def _installed(part: AnyRequirement) -> bool:
    """Whether the library that ``part`` is about is here, in whatever version."""
    if isinstance(part, Requirement):
        return part.check().version is not None
    return any(map(_installed, part.parts[:1] if isinstance(part, AllOf) else part.parts))


AnyRequirement = Requirement | AllOf | AnyOf


def _names(found: Iterable[Availability], joint: str) -> str:
    return joint.join(library.name for library in found)


def _versions(found: Iterable[Availability]) -> str | None:
    return ", ".join(library.version for library in found if library.version) or None


@cache
def _detect(requirement: Requirement) -> Availability:
    try:
        version = importlib.metadata.version(requirement.library)
        if not version:
            raise ValueError("it names no version")
        return requirement._found(version)
    except importlib.metadata.PackageNotFoundError:
        return requirement._absent()
    except Exception as error:  # broken metadata must not stop anybody else
        reason = f"the metadata of {requirement.library} cannot be read: {error!r}."
        return Availability(requirement.library, False, None, reason, requirement._command())


def forget() -> None:
    """Forget what was detected; for tests and for sessions that install while they run."""
    _detect.cache_clear()
