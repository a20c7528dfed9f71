"""Doing something in a child process that may be killed, crash or hang.

A fork costs milliseconds, a new Python with torch seconds: so many more attempts fit.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from quantlora import QuantloraError
from tests.tools.reliability.commands import RefusedError

#: Seconds after which a child counts as hanging.
PATIENCE = 120.0

#: Audit events of what changes files. The last is how two folders are exchanged.
_CHANGES = {
    "open", "os.chmod", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink",
    "os.truncate", "ctypes.dlsym",
}  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Args:
        value: what the action returned.
        error: the error that it raised, or how the process died; empty when it went through.
        explained: whether that error is one of ours.
        operations: how often it was about to change a file.
        seconds: how long it took.
    """

    value: Any = None
    error: str = ""
    explained: bool = False
    operations: int = 0
    seconds: float = 0.0
    killed: bool = False


class Child:
    """A forked process that runs ``action`` and sends back what it returns.

    Args:
        kill_before: SIGKILL before the so-many-th change of a file, counted from 0.
    """

    def __init__(self, action: Callable[[], Any], kill_before: int | None = None) -> None:
        self.begin = time.monotonic()
        self._read, write = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._read)
            _work(action, kill_before, write)
        os.close(write)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self, patience: float = PATIENCE) -> Ended:
        """How it ended; a child that takes longer than ``patience`` seconds is killed."""
        data = _all_of(self._read, self.begin + patience)
        if hangs := data is None:
            self.kill()
        status = os.waitpid(self.pid, 0)[1]
        seconds = time.monotonic() - self.begin
        if hangs:
            return Ended(error=f"it did not end within {patience:g} s", seconds=seconds)
        if os.WIFSIGNALED(status):
            name = signal.Signals(os.WTERMSIG(status)).name
            return Ended(error=f"ended by {name}", seconds=seconds, killed=name == "SIGKILL")
        answer = pickle.loads(data) if data else (None, "no answer", False, 0)
        return Ended(*answer, seconds)


def run(action: Callable[[], Any], patience: float = PATIENCE) -> Ended:
    """Run ``action`` in a child to its end."""
    return Child(action).wait(patience)


def killed_before(action: Callable[[], Any], operation: int) -> Ended:
    """Kill it before its so-many-th change of a file."""
    return Child(action, operation).wait()


def killed_after(action: Callable[[], Any], seconds: float) -> Ended:
    """Kill it so many seconds after its start."""
    child = Child(action)
    time.sleep(seconds)
    child.kill()
    return child.wait()


def _all_of(handle: int, end: float) -> bytes | None:
    """What comes through a pipe until it is closed; None if that takes too long."""
    data = b""
    try:
        while select.select([handle], [], [], max(0.0, end - time.monotonic()))[0]:
            piece = os.read(handle, 1 << 20)
            if not piece:
                return data
            data += piece
        return None
    finally:
        os.close(handle)


def _work(action: Callable[[], Any], kill_before: int | None, write: int) -> None:
    """In the child: never returns."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    torch.set_num_threads(1)
    count = _count_changes(kill_before)
    value, error, explained = None, "", False
    try:
        value = action()
    except BaseException as failure:
        error = f"{type(failure).__name__}: {failure}"
        explained = isinstance(failure, (QuantloraError, RefusedError))
    with os.fdopen(write, "wb") as pipe:
        pickle.dump((value, error, explained, count[0]), pipe)
    os._exit(0)


def _count_changes(kill_before: int | None) -> list[int]:
    """Counts from now on, in a list of one; a hook cannot be taken away, so in a child only."""
    count = [0]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _CHANGES and _changes(event, arguments):
            if count[0] == kill_before:
                os.kill(os.getpid(), signal.SIGKILL)
            count[0] += 1

    sys.addaudithook(hook)
    return count


def _changes(event: str, arguments: tuple[Any, ...]) -> bool:
    if event == "ctypes.dlsym":
        return arguments[1] == "renameat2"
    if event == "open":
        return bool(arguments[2] & _WRITING) and not _is_ours(arguments[0])
    return True


def _is_ours(path: Any) -> bool:
    """The pipe, and the device that swallows output."""
    return isinstance(path, int) or str(path) == os.devnull


def tree(folder: Path) -> dict[str, bytes]:
    """The files below ``folder`` with their bytes."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
