"""Several processes and threads that save into one folder, while others read it."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import quantlora
from tests.tools.reliability.forks import Child
from tests.tools.reliability.kill_save import ENDS, found
from tests.tools.reliability.outcome import Outcome
from tests.tools.reliability.subjects import wrapped

PROCESSES, THREADS = 3, 2


def concurrent_saves(place: Path, count: int, chance: random.Random) -> Iterator[Outcome]:
    """Half of the attempts are saves, half are reads in between: each finds one adapter, whole."""
    folder, models = place / "adapter", {r: wrapped(r=r) for r in ENDS}
    quantlora.save_adapter(models[2], folder)
    each = max(1, count // 2 // (PROCESSES * THREADS))

    def save(seed: int) -> int:
        own = random.Random(seed)
        for _ in range(each):
            quantlora.save_adapter(models[own.choice(list(ENDS))], folder)
            time.sleep(own.uniform(0, 0.002))
        return each

    def saves() -> int:
        with ThreadPoolExecutor(THREADS) as threads:
            return sum(threads.map(save, [chance.random() for _ in range(THREADS)]))

    children = [Child(saves) for _ in range(PROCESSES)]
    for _ in range(count // 2):
        end, fault = found(folder, models)
        yield Outcome("read meanwhile", end, fault)
    for child in children:
        ended = child.wait()
        for _ in range(each * THREADS):
            yield Outcome("save beside others", "saved", ended.error)
    yield Outcome("read at the end", *found(folder, models))
