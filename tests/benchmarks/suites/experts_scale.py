"""How the cost of a layer grows: with the experts that are there, with those that are hit.

As many tokens for each expert that is hit, so that twice the experts hit are twice the arithmetic.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from tests.benchmarks import experts_arms
from tests.benchmarks.arms import Size
from tests.benchmarks.result import Result
from tests.benchmarks.suites.experts import saved_bytes, train
from tests.benchmarks.suites.scale import slope

#: Tokens of each expert that is hit, and how many of them are hit or there in the other curve.
ROWS, HIT = 8, 8
FORM = "normalfloat"


def run(size: Size, device: str) -> Result:
    """The bare base is no arm: its experts that are not hit cost nothing either."""
    full = size.hidden > 1000
    result = Result("How the cost of experts grows", "ms or MiB", "the first size")
    small = replace(size, hidden=512 if full else 128, r=4)
    points = (8, 16, 32, 64) if full else (8, 16)
    for name in ("peft", "quantlora"):
        for what, there, hit in (
            ("experts there, 8 hit", lambda n: n, lambda n: HIT),
            (f"experts hit, of {points[-1]}", lambda n: points[-1], lambda n: n),
        ):
            sizes = [(there(n), hit(n)) for n in points]
            measured = [_measured(name, small, device, *pair, size.rounds) for pair in sizes]
            _add(result, f"a step, by {what}", name, points, [m[0] for m in measured], "ms")
            _add(result, f"kept, by {what}", name, points, [m[1] for m in measured], "MiB")
    return result


def _measured(
    name: str, size: Size, device: str, there: int, hit: int, rounds: int
) -> tuple[float, float]:
    """Milliseconds of a step, and MiB kept for backward."""
    model = experts_arms.arm(name, size, FORM, device, there).train()
    given = experts_arms.inputs(size, device, ROWS * hit // experts_arms.TOP_K, hit)
    work = partial(train, model, given)
    work()
    return 1e3 * min(_seconds(work) for _ in range(rounds)), saved_bytes(model, given) / 2**20


def _seconds(work: Callable[[], None]) -> float:
    begin = time.process_time()
    work()
    return max(time.process_time() - begin, 1e-9)


def _add(
    result: Result,
    what: str,
    name: str,
    points: tuple[int, ...],
    values: list[float],
    unit: str,
) -> None:
    exponent = slope(points, values)
    for point, value in zip(points, values, strict=True):
        row = {"case": f"{what}: {name}", "arm": name, "size": point, "value": value}
        row |= {"unit": unit, "ratio": value / values[0], "exponent": exponent}
        result.rows.append(row)
