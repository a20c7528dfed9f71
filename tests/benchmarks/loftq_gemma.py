"""Perplexity of a real 270M model: float, and quantized with zero, LoftQ and QERA starts.

    python tests/benchmarks/loftq_gemma.py results.jsonl [--bits 2 3 4] [--steps 24]

Gemma 3 270M (from PyPI packages) on the Python language reference, whose end is held out. Each
start is measured before training and after the same short training: same data, order and settings.
Every row is appended to the file when it is done, and is not measured again.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from quantlora_finetune.data.demo_text import demo_text
from quantlora_finetune.model.demo_model import demo_model
from quantlora_loftq import LoftQConfig, input_mean_squares
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

import quantlora

LENGTH, HELD_OUT, BATCH, CALIBRATION = 256, 8, 2, 16
STARTS = ("zero", "loftq", "qera")


def rows(folder: Path) -> tuple[Tensor, Tensor]:
    """Token rows ``(n, LENGTH)`` to train on and held out; each begins with ``<bos>``."""
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor(tokens(demo_text(), add_special_tokens=False).input_ids)
    body = ids[: len(ids) // (LENGTH - 1) * (LENGTH - 1)].view(-1, LENGTH - 1)
    whole = F.pad(body, (1, 0), value=tokens.bos_token_id)
    return whole[: -4 * HELD_OUT], whole[-4 * HELD_OUT :: 4]


def load(folder: Path) -> nn.Module:
    from transformers import AutoModelForCausalLM

    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    return model


def losses(model: Any, batch: Tensor) -> Tensor:
    """Mean cross-entropy of the next token."""
    logits = model(input_ids=batch, use_cache=False).logits[:, :-1].float()
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


@torch.no_grad()
def perplexity(model: nn.Module, held: Tensor) -> float:
    model.eval()
    return math.exp(sum(float(losses(model, row[None])) for row in held) / len(held))


def train(model: nn.Module, data: Tensor, steps: int, lr: float) -> None:
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    model.train()
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    for step in track(range(steps), "training", console=Console(stderr=True)):
        chosen = order[(step * BATCH + torch.arange(BATCH)) % len(order)]
        losses(model, data[chosen]).backward()
        optimizer.step()
        optimizer.zero_grad()


def quantized(folder: Path, bits: int, start: str, r: int, squares: dict[str, Tensor]) -> nn.Module:
    iterations = 5 if start == "loftq" else 1
    torch.manual_seed(0)
    return quantlora.wrap(
        load(folder),
        backend="normalfloat",
        r=r,
        lora_alpha=r,
        quantize_options={"bits": bits},
        init_lora_weights=True if start == "zero" else start,
        loftq_config=LoftQConfig(loftq_iter=iterations, calibration=squares),
    )


def measure(given: argparse.Namespace, done: set[tuple[int, str]]) -> Iterator[dict[str, Any]]:
    folder = demo_model()
    data, held = rows(folder)
    model = load(folder)
    if (16, "float") not in done:
        yield {"bits": 16, "start": "float", "before": perplexity(model, held)}
    squares = input_mean_squares(model, [row[None] for row in data[:: len(data) // CALIBRATION]])
    for bits in given.bits:
        for start in STARTS:
            if (bits, start) in done:
                continue
            begin = time.monotonic()
            model = quantized(folder, bits, start, given.rank, squares)
            row = {"bits": bits, "start": start, "wrap_s": round(time.monotonic() - begin, 1)}
            row["before"] = perplexity(model, held)
            train(model, data, given.steps, given.lr)
            yield {**row, "after": perplexity(model, held), "steps": given.steps, "r": given.rank}


def earlier(results: Path) -> list[dict[str, Any]]:
    """What earlier runs have measured, a row for each line."""
    lines = results.read_text().splitlines() if results.exists() else []
    return [json.loads(line) for line in lines]


def keep(results: Path, row: dict[str, Any]) -> None:
    """Write down a row as soon as it is measured."""
    with results.open("a") as stream:
        stream.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--lr", type=float, default=3e-4)
    given = parser.parse_args()
    done = {(one["bits"], one["start"]) for one in earlier(given.results)}
    for row in measure(given, done):
        keep(given.results, row)
        print(row, flush=True)


if __name__ == "__main__":
    main()
