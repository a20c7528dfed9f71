"""Figures of docs/gguf.md: the demonstration's Gemma as its file has it, in NF4, and dequantized.

python -m plugins.gguf.tests.gemma_figures [options of quantlora finetune]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

#: The model, and how it is asked for; each learns the same text and is measured on the same tokens.
RUNS = {
    "the file's blocks": ["--model", "{file}"],
    "NF4 (normalfloat)": ["--backend", "normalfloat"],
    "dequantized, float32": ["--backend", "float"],
}


def assemble(folder: Path) -> Path:
    """The demonstration's own file, from the packages that hold its parts."""
    from quantlora_finetune.model.demo_model import _assemble

    path = folder / "model.gguf"
    _assemble(path)
    return path


def held_bytes(path: Path) -> int:
    """Of the loaded model's tensors, each counted once."""
    import quantlora

    model = quantlora.load(path)
    tensors = {t.data_ptr(): t for t in [*model.parameters(), *model.buffers()]}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def report_of(given: Sequence[str], output: Path) -> dict[str, Any]:
    """The report of a run of ``quantlora finetune`` in a process of its own."""
    command = [sys.executable, "-m", "quantlora", "finetune", *given, "--output", str(output)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    report: dict[str, Any] = json.loads((output / "report.json").read_text())
    return report


def main(options: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = assemble(folder)
        size, held = file.stat().st_size, held_bytes(file)
        print(f"file {size:,} bytes, held {held:,}: {held / size:.3f} of it; {os.uname().machine}")
        for number, (kind, given) in enumerate(RUNS.items()):
            asked = [part.format(file=file) for part in given]
            report = report_of([*asked, "--dtype", "float32", *options], folder / str(number))
            print(f"{kind}: {json.dumps(report['perplexity'])}", flush=True)
            print(json.dumps({k: v for k, v in report.items() if k != "losses"})[:3000], flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
