"""``--deep``: a real operation per backend, each in a process of its own.

A native library that crashes takes only its own process along, and becomes a verdict.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any

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
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        code = _run(command, output, errors, patience)
        text = _text(errors)
        end = _ending(code, text) if code is not None else f"it did not end within {patience:g} s"
        return _steps(_text(output), end)


def _run(command: list[str], output: IO[bytes], errors: IO[bytes], patience: float) -> int | None:
    """The exit code of ``command``; None where it did not end in time.

    Files, not pipes: a process that it leaves behind would hold a pipe open, and us with it. What
    it started ends with it.
    """
    process = subprocess.Popen(
        command,
        stdout=output,
        stderr=errors,
        stdin=subprocess.DEVNULL,
        env=_environment(),
        start_new_session=True,
    )
    try:
        return process.wait(patience)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill ``process`` and whatever is left of its group."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")


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


def _events(output: str) -> Iterator[dict[str, Any]]:
    """One for each line; the last may have broken off."""
    for line in output.splitlines():
        with suppress(ValueError):
            yield json.loads(line)


def _steps(output: str, end: str) -> tuple[Step, ...]:
    """Lines are ``{"begin": name}`` and ``{"name", "ok", ...}``; what only began, broke off."""
    steps: list[Step] = []
    open_step = "start"
    for event in _events(output):
        if "begin" in event:
            open_step = event["begin"]
        else:
            steps.append(Step(**event))
            open_step = ""
    broken = end if open_step or not steps else ""
    return (*steps, Step(open_step or "start", False, 0.0, broken)) if broken else tuple(steps)
