"""Held-out loss of a real 270M model: QA-LoRA merged exactly against LoRA merged and requantized.

    python tests/benchmarks/qalora_gemma.py results.jsonl [--bits 4 3 2] [--steps 40]

Gemma 3 270M (from PyPI packages), quantized by GPTQModel, trained on the Python language reference,
whose end is held out: same base, data, order, rank and rate for both. Every row is appended to the
file when it is done, and is not measured again; the table is written beside it, as ``.md``.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # GPTQModel would compile its plain kernel
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")

import torch
from loftq_gemma import earlier, keep, load, perplexity, rows, train
from quantlora_finetune.model.demo_model import demo_model
from torch import Tensor, nn

import quantlora

GROUP, CALIBRATION = 32, 16
#: How each method's adapter is merged at the base's bits.
MODES = {"qalora": ("exact", "requantize"), "lora": ("requantize",)}
COLUMNS = {
    "steps": ("qalora", "steps"),
    "base": ("qalora", "base"),
    "QA-LoRA": ("qalora", "trained"),
    "merged exactly": ("qalora", "exact"),
    "merged, packed zero-points": ("qalora", "requantize"),
    "LoRA": ("lora", "trained"),
    "merged and requantized": ("lora", "requantize"),
}


def checkpoint(bits: int, place: Path, data: Tensor) -> Path:
    """The folder of the GPTQ model, quantized now unless it is there."""
    target = place / f"gemma-gptq-{bits}bit"
    if not target.exists():
        from transformers import AutoTokenizer

        options = {
            "calibration": [
                {"input_ids": row.tolist()} for row in data[:: len(data) // CALIBRATION]
            ],
            "tokenizer": AutoTokenizer.from_pretrained(demo_model()),
            "bits": bits,
            "group_size": GROUP,
            "save_to": target.with_suffix(".partial"),
        }
        model = load(demo_model()).float()
        quantlora.wrap(model, backend="gptq", r=1, quantize_options=options)
        target.with_suffix(".partial").rename(target)
    return target


def packed(folder: Path) -> nn.Module:
    from transformers import AutoModelForCausalLM, GPTQConfig

    model: nn.Module = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.bfloat16,
        device_map="cpu",
        quantization_config=GPTQConfig(bits=4, backend="gptq_torch"),
    )
    return model


def loss(model: nn.Module, held: Tensor) -> float:
    return round(math.log(perplexity(model, held)), 4)


def measure(
    base: Path, method: str, data: Tensor, held: Tensor, given: argparse.Namespace
) -> dict[str, Any]:
    """Train one adapter in bfloat16; measure it in float32, apart and merged in each way."""
    torch.manual_seed(0)
    fields = {"r": given.rank, "lora_alpha": given.rank, "use_qalora": method == "qalora"}
    model = quantlora.wrap(packed(base), **fields)
    begin = time.monotonic()
    train(model, data, given.steps, given.lr)
    row = {"method": method, "steps": given.steps, "train_s": round(time.monotonic() - begin)}
    nn.Module.float(model)  # Transformers refuses it on packed models; here only scales are cast
    if method == "qalora":  # the base of both
        with quantlora.adapters_disabled(model):
            row["base"] = loss(model, held)
    row["trained"] = loss(model, held)
    for mode in MODES[method]:
        report = quantlora.merge(model, mode=mode)
        row[mode] = loss(model, held)
        row[f"{mode} loses"] = round(statistics.median(one.loss for one in report.layers), 7)
        quantlora.unmerge(model)
    return row


def table(done: Iterable[dict[str, Any]]) -> str:
    """Markdown; a cell that has not been measured is empty."""
    found = {(one["bits"], one["method"]): one for one in done}
    lines = [" | ".join(("| bits", *COLUMNS)) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for bits in sorted({bits for bits, _ in found}, reverse=True):
        cells = [found.get((bits, method), {}).get(key, "") for method, key in COLUMNS.values()]
        shown = (f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells)
        lines.append(" | ".join((f"| {bits}", *shown)) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--lr", type=float, default=3e-4)
    given = parser.parse_args()
    warnings.filterwarnings("ignore", "merging lost most")
    done = earlier(given.results)
    data, held = rows(demo_model())
    for bits in given.bits:
        base = checkpoint(bits, given.results.parent, data)
        for method in MODES:
            if not any((one["bits"], one["method"]) == (bits, method) for one in done):
                done.append({"bits": bits, **measure(base, method, data, held, given)})
                keep(given.results, done[-1])
                given.results.with_suffix(".md").write_text(table(done))
    print(table(done), end="")


if __name__ == "__main__":
    main()
