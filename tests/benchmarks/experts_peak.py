"""Peak resident memory of a training step of one arm, in a process that does nothing else.

    python -m tests.benchmarks.experts_peak quantlora normalfloat full

Prints bytes: the most that was resident from the first step on, less what was before the layer was
made. The float weights that were packed are gone by then, and their memory is given back.
"""

from __future__ import annotations

import gc
import re
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.arms import FULL, SMOKE, Size

STEPS = 2
_STATUS = Path("/proc/self/status")


def peak_of(name: str, form: str, size: Size) -> int:
    """Bytes, measured in a process of its own."""
    which = "full" if size.hidden == FULL.hidden else "smoke"
    line = [sys.executable, "-m", "tests.benchmarks.experts_peak", name, form, which]
    done = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout.split()[-1])


def main() -> None:
    name, form, which = sys.argv[1:]
    size = FULL if which == "full" else SMOKE
    from tests.benchmarks import experts_arms
    from tests.benchmarks.suites.experts import train

    tiny = experts_arms.arm(name, SMOKE, form, "cpu")  # libraries are imported and initialized
    train(tiny, experts_arms.inputs(SMOKE, "cpu", 8))
    del tiny
    _settle()
    before = _bytes("VmRSS")
    model = experts_arms.arm(name, size, form, "cpu").train()
    given = experts_arms.inputs(size, "cpu", size.tokens)
    _settle()
    Path("/proc/self/clear_refs").write_text("5")  # from here on the peak counts anew
    for _ in range(STEPS):
        train(model, given)
    print(_bytes("VmHWM") - before)


def _settle() -> None:
    from quantlora.loading.free_memory import give_back

    gc.collect()
    give_back()


def _bytes(field: str) -> int:
    (found,) = re.findall(rf"{field}:\s+(\d+) kB", _STATUS.read_text())
    return 1024 * int(found)


if __name__ == "__main__":
    main()
