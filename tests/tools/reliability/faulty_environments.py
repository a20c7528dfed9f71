"""Environments with a fault that users report: found by the report and by `wrap`, with a remedy."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from tests.env.faulty_environment import Environment
from tests.env.test_faults import MISSING, RUNNING
from tests.tools.reliability.outcome import Outcome

#: Taken away first, so that each environment has its own fault only.
OTHERS = ("gptqmodel", "auto-gptq", "optimum")


def faulty_environments(place: Path, count: int, chance: random.Random) -> Iterator[Outcome]:
    """The verdict is UNAVAILABLE; reason and remedy are those of the error that `wrap` raises."""
    faults = {**MISSING, **RUNNING}
    for number, name in enumerate([*faults][:count]):
        folder = place / str(number)
        folder.mkdir()
        yield Outcome(name, "diagnosed", _missed(name, folder))


def _missed(name: str, folder: Path) -> str:
    """What was not said."""
    backend, make, reason, fix = {**MISSING, **RUNNING}[name]
    environment = Environment(folder)
    for library in OTHERS:
        environment.remove(library)
    make(environment)
    found = environment.ask(backend, deep=name in RUNNING)
    if found["status"] != "UNAVAILABLE":
        return f"the verdict is {found['status']}"
    places = {"reason": reason, "fix": fix, "error": reason}
    missed = [place for place, text in places.items() if text not in found[place]]
    return f"not in the {', '.join(missed)}" if missed else ""
