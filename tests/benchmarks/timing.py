"""Times that can be compared: every arm once in each round, in turn, and ratios round by round.

A machine changes its speed from minute to minute, more so when it is shared. What two arms of one
round took is alike in that; the minimum over the rounds is what was least disturbed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch

Work = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds of one arm, and what share of the reference arm's it is."""

    minimum: float
    median: float
    ratio: float  # of the minima
    ratio_low: float  # the smallest and largest of the ratios round by round
    ratio_high: float

    def as_json(self) -> dict[str, float]:
        return asdict(self)


def interleaved(arms: Mapping[str, Work], reference: str, rounds: int) -> dict[str, Timing]:
    """Time ``arms`` in turn, after one round that does not count.

    CPU seconds of the process where one thread computes on a CPU: they leave out most of what
    others on the machine take. Otherwise seconds of the clock.
    """
    seconds = rounds_of(arms, rounds)
    return {name: timing(own, seconds[reference]) for name, own in seconds.items()}


def rounds_of(arms: Mapping[str, Work], rounds: int) -> dict[str, list[float]]:
    """Seconds of each arm, one for each round; the order is turned by one from round to round."""
    names = list(arms)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            spent = _timed(arms[name])
            if turn:
                seconds[name].append(spent)
    return seconds


def timing(own: list[float], other: list[float]) -> Timing:
    """``own`` against ``other``, round by round."""
    ratios = [_ratio(mine, theirs) for mine, theirs in zip(own, other, strict=True)]
    least = _ratio(min(own), min(other))
    return Timing(min(own), statistics.median(own), least, min(ratios), max(ratios))


def _ratio(mine: float, theirs: float) -> float:
    """What is too short for the clock has none."""
    return mine / theirs if theirs > 0 else float("nan")


def _timed(work: Work) -> float:
    clock = time.process_time if counts_cpu_time() else time.perf_counter
    _finish()
    begin = clock()
    work()
    _finish()
    return clock() - begin


def counts_cpu_time() -> bool:
    return torch.get_num_threads() == 1 and not torch.cuda.is_initialized()


def _finish() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
