"""What a trial is, and how one attempt of it ended."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Outcome:
    """One attempt.

    Args:
        case: what was tried: ``bit flip``, ``before an operation``.
        end: how it ended, in a few words that are the same for all that ended so.
        fault: what was lost; empty when nothing was.
    """

    case: str
    end: str
    fault: str = ""


#: ``(empty folder, attempts wanted, source of chance)`` to one outcome for each attempt.
Run = Callable[[Path, int, random.Random], Iterator[Outcome]]


@dataclass(frozen=True)
class Trial:
    """One kind of fault, tried many times.

    Args:
        name: what users of the command type.
        guarantee: what must hold in every attempt.
        full: attempts of the full form.
        short: attempts of the short one, which the tests run; 0: left to tests of its own.
    """

    name: str
    guarantee: str
    run: Run
    full: int
    short: int


@dataclass(frozen=True)
class Result:
    """All attempts of one trial, and the seconds they took together."""

    trial: Trial
    outcomes: tuple[Outcome, ...]
    seconds: float

    @property
    def tried(self) -> int:
        return len(self.outcomes)

    @property
    def faults(self) -> list[Outcome]:
        return [one for one in self.outcomes if one.fault]

    @property
    def survived(self) -> int:
        return self.tried - len(self.faults)
