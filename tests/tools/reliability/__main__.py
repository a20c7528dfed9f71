"""``python -m tests.tools.reliability``: try to lose something, and count what was lost."""

from __future__ import annotations

import datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.tools.reliability.outcome import Result, Trial
from tests.tools.reliability.page import PAGE, page
from tests.tools.reliability.trials import TRIALS, run_trial

app = typer.Typer(
    add_completion=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console(highlight=False)


@app.command()
def main(
    only: Annotated[
        list[str] | None, typer.Option(help="Run this trial only; may be repeated.")
    ] = None,
    short: Annotated[
        bool, typer.Option("--short", help="Few attempts of each, in a minute.")
    ] = False,
    count: Annotated[int, typer.Option(min=0, help="So many attempts of each instead.")] = 0,
    seed: Annotated[int, typer.Option(help="Of all that is left to chance.")] = 0,
    write: Annotated[
        bool, typer.Option("--write", help="Write docs/reliability.md from a full run.")
    ] = False,
) -> None:
    """Kill, fill the disk, damage files, run out of memory; and look whether anything is lost.

    Run it from the top of a checkout. The full form takes about a quarter of an hour on one core.
    As root it mounts a small tmpfs for the trials of full and read-only disks; otherwise files are
    limited in size, and folders in their permissions.

    Exit code: 0, nothing was lost; 1, something was: it is listed with its seed.

    **Examples**

    - `python -m tests.tools.reliability --short`
    - `python -m tests.tools.reliability --only mutated-files --count 100000 --seed 7`
    - `python -m tests.tools.reliability --write`

    **Trials**: TRIAL_NAMES
    """
    chosen = _chosen(only or [])
    if write and (only or short or count):
        raise typer.BadParameter("the page is written from a full run: leave the others out")
    results = _run(chosen, short, count, seed)
    _show(results)
    if write:
        PAGE.write_text(page(results, seed, datetime.date.today().isoformat()), "utf-8")
        console.print(f"written: {PAGE}")
    raise typer.Exit(1 if any(one.faults for one in results) else 0)


main.__doc__ = (main.__doc__ or "").replace("TRIAL_NAMES", ", ".join(t.name for t in TRIALS))


def _chosen(names: list[str]) -> list[Trial]:
    known = {trial.name: trial for trial in TRIALS}
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"{name} is no trial; there are {', '.join(known)}")
    return [known[name] for name in names] or list(TRIALS)


def _run(trials: list[Trial], short: bool, count: int, seed: int) -> list[Result]:
    columns = (TextColumn("{task.description:20}"), BarColumn(), MofNCompleteColumn())
    results = []
    with Progress(*columns, TextColumn("{task.fields[lost]}"), TimeElapsedColumn()) as bars:
        for trial in trials:
            wanted = count or (trial.short if short else trial.full)
            if wanted:
                results.append(_watched(trial, wanted, seed, bars))
    return results


def _watched(trial: Trial, count: int, seed: int, bars: Progress) -> Result:
    bar, lost = bars.add_task(trial.name, total=count, lost=""), []

    def noted(one: object) -> None:
        lost.extend([one] if getattr(one, "fault", "") else [])
        bars.update(bar, advance=1, lost=f"[red]{len(lost)} lost" if lost else "")

    result = run_trial(trial, count, seed, noted)
    bars.update(bar, total=result.tried, completed=result.tried)
    return result


def _show(results: list[Result]) -> None:
    table = Table("trial", "survived", "of tried", "seconds")
    for one in results:
        style = "red" if one.faults else ""
        cells = (one.trial.name, f"{one.survived:,}", f"{one.tried:,}", f"{one.seconds:.1f}")
        table.add_row(*cells, style=style)
    console.print(table)
    for one in results:
        for found in one.faults[:10]:
            console.print(
                f"{one.trial.name}: {found.case}: {found.fault}", style="red", markup=False
            )


if __name__ == "__main__":
    app(prog_name="python -m tests.tools.reliability")
