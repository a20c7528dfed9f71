"""Out of memory, or Ctrl-C, in the middle of what changes a model.

Simulated: the plugin in ``tests/data/scarce`` raises at a step that we choose.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import quantlora
from tests.tools.reliability.forks import run
from tests.tools.reliability.mutated_files import state, unchanged
from tests.tools.reliability.outcome import Outcome
from tests.tools.reliability.subjects import plain

PLUGIN = Path(__file__).parents[2] / "data" / "scarce"
ERRORS = (MemoryError, torch.OutOfMemoryError, KeyboardInterrupt)

#: What is interrupted, and what the model was before. `use_dora` dequantizes while it wraps.
CALLS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, Path], Any]]] = {
    "wrap that quantizes": (plain, lambda model, folder: _wrap(model, backend="scarce")),
    "wrap with DoRA": (plain, lambda model, folder: _wrap(model, backend="scarce", use_dora=True)),
    "wrap with a second adapter": (
        lambda: _wrap(plain(), backend="scarce"),
        lambda model, folder: _wrap(model, adapter_name="second"),
    ),
    "load_adapter": (
        plain,
        lambda model, folder: quantlora.load_adapter(model, folder, backend="scarce"),
    ),
    "merge": (
        lambda: _wrap(plain(), backend="scarce"),
        lambda model, folder: quantlora.merge(model),
    ),
}


def _wrap(model: nn.Module, **fields: Any) -> nn.Module:
    return quantlora.wrap(model, r=2, init_lora_weights="scarce", **fields)


def memory_runs_out(place: Path, count: int, chance: random.Random) -> Iterator[Outcome]:
    """Afterwards the model is as it was, and the same call goes through."""
    ended = run(lambda: _all(place, count))
    yield from ended.value or [Outcome("all", "", ended.error)]


def _all(place: Path, count: int) -> list[Outcome]:
    """In a child, where the plugin is installed."""
    sys.path.insert(0, str(PLUGIN))
    quantlora.forget_plugins()
    quantlora.save_adapter(_wrap(plain(), backend="scarce"), place)
    steps = {name: _steps(name, place) for name in CALLS}
    cases = [(n, step, e) for n, last in steps.items() for step in range(last) for e in ERRORS]
    return [_interrupted(*cases[number % len(cases)], place) for number in range(count)]


def _steps(name: str, place: Path) -> int:
    """How many steps a call takes."""
    from scarce_layers import Memory, fail_at

    make, call = CALLS[name]
    model = make()
    fail_at(10**6, MemoryError())
    call(model, place)
    taken = 10**6 - Memory.left
    fail_at(-1, MemoryError())
    return taken


def _interrupted(name: str, step: int, error: type[BaseException], place: Path) -> Outcome:
    from scarce_layers import fail_at

    make, call = CALLS[name]
    model = make()
    before = state(model)
    fail_at(step, error("no memory"))
    try:
        call(model, place)
        fault = "the step was not reached"
    except error:
        fault = "" if unchanged(before, state(model)) else f"changed by step {step}"
    fail_at(-1, MemoryError())
    call(model, place)
    return Outcome(f"{name}, {error.__name__}", "as it was", fault)
