"""A disk that is full or read-only, under everything that writes results."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from quantlora_finetune.run import limits

from tests.tools.reliability.disks import SIZE, Disk, small_disk
from tests.tools.reliability.forks import Ended, run, tree
from tests.tools.reliability.outcome import Outcome
from tests.tools.reliability.writers import Writer, all_writers

#: Where no more than this is free, no writer gets through.
_LEAST = 4096


def full_disks(place: Path, count: int, chance: random.Random) -> Iterator[Outcome]:
    """More and more room, from none to what a writer needs; then room is made, and it goes on."""
    with small_disk(place / "disk") as disk:
        writers = all_writers(place / "sources")
        share = [count * (index + 1) // len(writers) for index in range(len(writers))]
        for writer, end, begin in zip(writers, share, [0, *share], strict=False):
            yield from _filled(writer, disk, end - begin)


def _filled(writer: Writer, disk: Disk, count: int) -> Iterator[Outcome]:
    out = disk.folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    ended = run(lambda: _within(disk, writer, out))
    assert not ended.error, ended.error
    wanted, need = writer.result(out), _size(disk)
    for number in range(count):
        shutil.rmtree(out, ignore_errors=True)
        writer.over(out)
        before = tree(out)
        disk.leave(_LEAST + number * need // max(1, count))
        ended = run(lambda: _within(disk, writer, out))
        fault = _judged(ended, before, tree(out))
        disk.make_room()
        again = run(lambda: _within(disk, writer, out)) if ended.error else ended
        if not fault and (again.error or writer.result(out) != wanted):
            fault = f"with room again: {again.error or 'another result'}"
        yield Outcome(f"{writer.name}, {_way(disk)}", _end(ended), fault)


def _size(disk: Disk) -> int:
    """Bytes that a run needs at most, temporary ones included: all there are, generously."""
    return min(SIZE, 2 * sum(len(data) for data in tree(disk.folder).values()))


def _within(disk: Disk, writer: Writer, out: Path) -> None:
    """In a child; ``finetune`` would look for room first, and never meet the full disk."""
    limits.require_space = lambda *_: None
    disk.enter()
    writer.write(out)


def _judged(ended: Ended, before: dict[str, bytes], after: dict[str, bytes]) -> str:
    if ended.error and not ended.explained:
        return f"not explained: {ended.error[:300]}"
    lost = [name for name, data in before.items() if ended.error and after.get(name) != data]
    return f"lost: {', '.join(lost)}" if lost else ""


def _end(ended: Ended) -> str:
    return "an error that says so, then it goes on" if ended.error else "there was room enough"


def _way(disk: Disk) -> str:
    return "a full tmpfs" if disk.real else "files limited in size"


def read_only(place: Path, count: int, chance: random.Random) -> Iterator[Outcome]:
    """A folder that cannot be written: an error that says so, and everything as it was."""
    with small_disk(place / "disk") as disk:
        writers = all_writers(place / "sources")
        for number in range(count):
            writer = writers[number % len(writers)]
            out = disk.folder / "out"
            shutil.rmtree(out, ignore_errors=True)
            writer.over(out)
            if number >= len(writers) and not out.exists():
                out.mkdir()
            before = tree(disk.folder)
            with disk.locked():
                ended = run(lambda writer=writer, out=out: writer.write(out))
                after = tree(disk.folder)
            fault = "" if ended.error else "it said nothing"
            fault = fault or _judged(ended, before, after)
            kind = "mounted read-only" if disk.real else "no permission to write"
            yield Outcome(f"{writer.name}, {kind}", "an error that says so", fault)
