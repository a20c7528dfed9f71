"""What `check_distributed` found: what must be changed, and what should be known."""

from __future__ import annotations

from dataclasses import dataclass

from quantlora.errors import BackendError


@dataclass(frozen=True)
class Finding:
    """One thing about some layers.

    Args:
        what: what is so, and why it matters.
        remedy: what to do.
        paths: the layers or parameters concerned; none: the model as a whole.
    """

    what: str
    remedy: str
    paths: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self._where()}{self.what} {self.remedy}"

    def _where(self) -> str:
        if not self.paths:
            return ""
        more = f" (and {len(self.paths) - 1} more)" if len(self.paths) > 1 else ""
        return f"{self.paths[0]}{more}: "


@dataclass(frozen=True)
class DistributedReport:
    """The answer to "can this model be trained with ``strategy``?"

    Args:
        strategy: one of `STRATEGIES`.
        problems: what must be changed first; training would fail or be wrong.
        notes: what costs memory or time, and need not be changed.
    """

    strategy: str
    problems: tuple[Finding, ...]
    notes: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        return not self.problems

    def require(self) -> None:
        """Raise `BackendError` where something must be changed."""
        if self.problems:
            raise BackendError(
                f"this model cannot be trained with {self.strategy!r} as it is:\n"
                + "\n".join(f"- {problem}" for problem in self.problems)
            )

    def __str__(self) -> str:
        head = f"{self.strategy}: {'ready' if self.ok else 'must be changed'}"
        lines = [f"  change: {problem}" for problem in self.problems]
        return "\n".join([head, *lines, *(f"  note: {note}" for note in self.notes)])
