"""A training step, and what LoRA adds to the base's, as a share of what PEFT adds."""

from __future__ import annotations

import statistics
from functools import partial

from tests.benchmarks.arms import Size
from tests.benchmarks.result import Result
from tests.benchmarks.suites import training
from tests.benchmarks.timing import rounds_of, timing


def run(size: Size, device: str) -> Result:
    """Own cost: a step less the base's of the same round."""
    result = Result("A training step", "ms", "base")
    for case in training.CASES:
        models = training.models(case, size, device)
        errors = training.errors(models, size, device)
        x = training.embedded(size, device)
        work = {name: partial(training.step, model, x) for name, model in models.items()}
        seconds = rounds_of(work, size.rounds)
        times = {name: timing(own, seconds["base"]) for name, own in seconds.items()}
        result.add(case, times, errors)
        result.rows[-1] |= _own(seconds)
    return result


def _own(seconds: dict[str, list[float]]) -> dict[str, float]:
    """quantlora's own cost over PEFT's: of the minima, and the quartiles of the rounds."""
    least = {name: min(own) for name, own in seconds.items()}
    base = least["base"]
    rounds = zip(seconds["quantlora"], seconds["peft"], seconds["base"], strict=True)
    shares = [(mine - bare) / (theirs - bare) for mine, theirs, bare in rounds if theirs > bare]
    found = {"own_share": (least["quantlora"] - base) / (least["peft"] - base)}
    if len(shares) > 1:
        quartiles = statistics.quantiles(shares, n=4)
        found |= {"own_share_low": quartiles[0], "own_share_high": quartiles[2]}
    return found
