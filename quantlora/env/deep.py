"""``--deep``: a real operation per backend, each in a process of its own.

A native library that crashes takes only its own process along, and becomes a verdict.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass

#: Seconds one backend may take; compiling a kernel for the first time takes a minute.
PATIENCE = 300.0

_SIGNALS = {
    "SIGILL": "a native library uses an instruction that this processor lacks",
    "SIGKILL": "something killed it, perhaps the system for lack of memory",
}


@dataclass(frozen=True)
class Step:
    """One step that was tried: seconds it took and, if it failed, why and what to type."""

    name: str
    ok: bool
    seconds: float
    error: str = ""
    fix: str = ""


def run_deep(backend: str, patience: float = PATIENCE) -> tuple[Step, ...]:
    """The steps of `exercise` for one backend; the last one is the one that failed, if any."""
    command = [sys.executable, "-m", "quantlora.env.exercise", backend]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env=_environment(),
    ) as process:
        try:
            output, errors = process.communicate(timeout=patience)
            end = _ending(process.returncode, errors)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
            end = f"it did not end within {patience:g} s"
    return _steps(output, end)


def failed_step(steps: tuple[Step, ...]) -> Step | None:
    """The step that failed; None if all went well."""
    return next((step for step in steps if not step.ok), None)


def _environment() -> dict[str, str]:
    """This one's, without Hugging Face's token: nothing is downloaded."""
    kept = {name: value for name, value in os.environ.items() if "TOKEN" not in name}
    return {**kept, "HF_HUB_OFFLINE": "1"}


def _ending(code: int, errors: str) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        return f"the process was ended by {name}: {_SIGNALS.get(name, 'a native library crashed')}"
    last = errors.strip().rsplit("\n", 1)[-1]
    return f"the process ended with exit code {code}: {last}" if code else ""


def _steps(output: str, end: str) -> tuple[Step, ...]:
    """Lines are ``{"begin": name}`` and ``{"name", "ok", ...}``; what only began, broke off."""
    steps: list[Step] = []
    open_step = "start"
    for line in output.splitlines():
        event = json.loads(line)
        if "begin" in event:
            open_step = event["begin"]
        else:
            steps.append(Step(**event))
            open_step = ""
    broken = end if open_step or not steps else ""
    return (*steps, Step(open_step or "start", False, 0.0, broken)) if broken else tuple(steps)
