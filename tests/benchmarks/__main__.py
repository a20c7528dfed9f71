"""Speed and memory beside the peers', in one run.

    python -m tests.benchmarks [suite ...] [--device cuda] [--page docs/benchmarks.md]
    python -m tests.benchmarks --smoke      # tiny sizes, in CI: is every arm right

Each arm is first checked against float64; the run stops if one is wrong. What is found goes to the
folder as JSON with the machine's description and as a plot, with --page also into that page.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.benchmarks.arms import FULL, SMOKE, Size
from tests.benchmarks.machine import machine
from tests.benchmarks.page import PICTURES, write_table
from tests.benchmarks.picture import plot
from tests.benchmarks.result import Result
from tests.benchmarks.suites import (
    decode,
    experts,
    experts_scale,
    generate,
    loftq,
    memory,
    merge,
    multi,
    prefill,
    saving,
    scale,
    starting,
    step,
    wrapping,
)

SUITES = {
    "step": step.run,
    "memory": memory.run,
    "decode": decode.run,
    "prefill": prefill.run,
    "generate": generate.run,
    "multi": multi.run,
    "scale": scale.run,
    "wrap": wrapping.run,
    "loftq": loftq.run,
    "experts-kept": experts.kept,
    "experts-peak": experts.peak,
    "experts-step": experts.step,
    "experts-decode": experts.decode,
    "experts-scale": experts_scale.run,
    "merge": merge.run,
    "save": saving.run,
    "import": starting.imports,
    "env": starting.env,
}


def main() -> None:
    given = _arguments()
    given.out.mkdir(parents=True, exist_ok=True)
    for suite in given.suites or SUITES:
        file = given.out / f"{suite}.json"
        if not given.again:
            found = measure(suite, _size(given), given.device)
            file.write_text(json.dumps(found, indent=1) + "\n")
        elif not file.exists():
            continue
        found = json.loads(file.read_text())
        plot(given.out / f"{suite}.png", found)
        if given.page:
            write_table(given.page, suite, found)
            plot(given.page.parent / PICTURES / f"benchmark-{suite}.png", found)
        print(f"{suite}: {len(found['result']['rows'])} rows in {given.out}", flush=True)


def _size(given: argparse.Namespace) -> Size:
    size = SMOKE if given.smoke else FULL
    changes = {name: getattr(given, name) for name in ("rounds", "tokens")}
    return replace(size, **{name: one for name, one in changes.items() if one})


def measure(suite: str, size: Size, device: str) -> dict[str, Any]:
    """What one suite finds, and on what machine."""
    facts = machine(device)
    result: Result = SUITES[suite](size, device)
    return {"suite": suite, "size": vars(size), "machine": facts, "result": result.as_json()}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("suites", nargs="*", choices=[*SUITES, []], metavar="suite")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"))
    parser.add_argument("--page", type=Path, help="the page whose tables are to be written")
    parser.add_argument("--rounds", type=int, help="how often each arm is timed")
    parser.add_argument("--tokens", type=int, help="of a training step")
    parser.add_argument("--again", action="store_true", help="write what was measured before")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: correctness only")
    return parser.parse_args()


if __name__ == "__main__":
    main()
