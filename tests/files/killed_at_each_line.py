"""Kills a save before each line of it in turn; prints what each kill left. Run by a test.

    python killed_at_each_line.py FOLDER [no-exchange]

Needs no torch: a set is three files that all say "old" or all say "new".
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
from pathlib import Path

from quantlora.files import atomic_set, swap_folder

NAMES = ("config", "note", "weights")
CODE = os.path.dirname(atomic_set.__file__)


def save(folder: Path, text: str) -> None:
    def writer(path: Path) -> None:
        path.write_text(text)

    atomic_set.write_set(folder, dict.fromkeys(NAMES, writer), obsolete=("pickle",))


def kill_before(line: int):
    """A trace function that ends the process before the ``line``-th line of a save."""
    seen = 0

    def trace(frame, event, argument):
        nonlocal seen
        if not frame.f_code.co_filename.startswith(CODE):
            return None
        if event == "line":
            seen += 1
            if seen == line:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace


def killed(folder: Path, line: int) -> bool:
    child = os.fork()
    if child == 0:
        sys.settrace(kill_before(line))
        save(folder, "new")
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def state(folder: Path) -> str:
    """What a reader sees: one set, nothing without the last file, or a mixture."""
    if not (folder / NAMES[-1]).exists():
        return "none"
    texts = {(folder / name).read_text() for name in NAMES if (folder / name).exists()}
    return texts.pop() if len(texts) == 1 else "mixture"


def prepare(folder: Path) -> None:
    save(folder, "old")
    (folder / "pickle").write_text("old")
    (folder / "optimizer.pt").write_text("kept")
    (folder / "runs").mkdir(exist_ok=True)
    (folder / "runs" / "log").write_text("kept")


def kept(folder: Path) -> bool:
    return [(folder / n).read_text() for n in ("optimizer.pt", "runs/log")] == ["kept", "kept"]


def main(folder: Path, first: bool) -> dict[str, object]:
    states, line = [], 0
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        if not first:
            prepare(folder)
        line += 1
        if not killed(folder, line):
            break
        found = state(folder)
        states.append(found if first or kept(folder) else "lost")
        save(folder, "next")
        if state(folder) != "next" or (not first and not kept(folder)):
            states.append("not recovered")
    left = [path.name for path in (*folder.parent.iterdir(), *folder.iterdir())]
    return {"states": sorted(set(states)), "lines": line, "left": sorted(left)}


if __name__ == "__main__":
    os.fsync = lambda handle: None  # slow, and of no effect on a kill
    if "no-exchange" in sys.argv:

        def refuse(one: Path, other: Path) -> None:
            raise OSError(errno.EINVAL, "not here")

        swap_folder.exchange = refuse
    print(json.dumps(main(Path(sys.argv[1]), "first" in sys.argv)))
