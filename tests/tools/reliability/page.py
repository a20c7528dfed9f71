"""``docs/reliability.md``: written from results, by nobody else."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from tests.tools.reliability.outcome import Result

PAGE = Path(__file__).parents[3] / "docs" / "reliability.md"
COMMAND = "python -m tests.tools.reliability --write"

_HEAD = """# Reliability

Attempts to lose data, and what they lost. This page is written by

```bash
{command}
```

from a checkout, which ran {when} on {machine}, Python {python}, torch {torch}, with seed {seed},
in {minutes:.1f} minutes on one core. `--short` tries less of each; the tests do so in every run.

**Survived: {survived:,} of {tried:,} attempts.**

| trial | survived | of tried | what holds |
|---|---:|---:|---|
{rows}
"""

_LIMITS = """
## What this does not say

- A kill here is SIGKILL. What a power failure leaves depends on the disk; files are flushed (fsync)
  before they are shown.
- Where a file system cannot exchange two folders (NFS, macOS, Windows), a kill in the middle of a
  save that replaces several files may leave no adapter at all; never a mixture.
- `finetune` promises the same bits in the same number of threads and processes only: another number
  may add the same sums in another order. What came of it here is under determinism, with a model too
  small to keep a second thread busy. `loftq` gives the same bits for any number of processes.
- A file that is as large as its header says is read whole: it takes the memory and the time of a
  real one of that size.
- Threads may call one model at the same time. What changes the model (`set_adapter`, `merge`,
  `mixed_batch`, `.backward()` into one `.grad`) belongs to one thread at a time.
- Nothing here has run on a GPU.
"""  # noqa: E501


def page(results: Sequence[Result], seed: int, when: str) -> str:
    """The whole text."""
    head = _HEAD.format(
        command=COMMAND,
        when=when,
        machine=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        torch=torch.__version__,
        seed=seed,
        minutes=sum(one.seconds for one in results) / 60,
        survived=sum(one.survived for one in results),
        tried=sum(one.tried for one in results),
        rows="\n".join(_row(one) for one in results),
    )
    return head + "\n" + "\n".join(_section(one) for one in results) + _LIMITS


def _row(one: Result) -> str:
    name = one.trial.name
    cells = (f"[{name}](#{name})", f"{one.survived:,}", f"{one.tried:,}", one.trial.guarantee)
    return f"| {' | '.join(cells)} |"


def _section(one: Result) -> str:
    rows = "\n".join(f"| {case} | {count:,} | {ends} |" for case, count, ends in cases(one))
    faults = "".join(f"- {found.case}: {found.fault}\n" for found in one.faults[:20])
    table = f"| attempts | of | ended |\n|---|---:|---|\n{rows}\n"
    return f"## {one.trial.name}\n\n{table}" + (f"\nLost:\n\n{faults}" if faults else "")


def cases(one: Result) -> Iterable[tuple[str, int, str]]:
    """Each kind of attempt, how many there were, and how they ended."""
    for case in dict.fromkeys(found.case for found in one.outcomes):
        of_case = [found for found in one.outcomes if found.case == case]
        ends = Counter("LOST" if found.fault else found.end for found in of_case)
        yield case, len(of_case), ", ".join(f"{end}: {n:,}" for end, n in ends.most_common())
