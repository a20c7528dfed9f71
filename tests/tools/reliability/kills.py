"""Killing an action again and again: before each change of a file in turn, and at random."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from tests.tools.reliability.forks import Ended, killed_after, killed_before, run

CHOSEN = "before a change of a file"
AT_RANDOM = "at a random moment"


def whole(action: Callable[[], Any]) -> Ended:
    """``action`` without a kill, which must go through."""
    ended = run(action)
    assert not ended.error, f"the unbroken run failed: {ended.error}"
    return ended


def kills(
    action: Callable[[], Any],
    prepare: Callable[[], None],
    count: int,
    chance: random.Random,
    unbroken: Ended,
) -> Iterator[str]:
    """Prepare, start and kill ``action``; after each kill give its kind, for a look at the rest.

    Half of the kills come before changes of files, spread evenly over the whole run, or before
    each one where they suffice; the others at random moments.
    """
    for number in range(count):
        prepare()
        if number % 2 == 0:
            place = (number // 2) / max(1, (count + 1) // 2)
            ended, kind = killed_before(action, int(place * unbroken.operations)), CHOSEN
        else:
            ended, kind = killed_after(action, chance.uniform(0, unbroken.seconds)), AT_RANDOM
        assert ended.killed or not ended.error, f"not killed, and yet: {ended.error}"
        yield kind
