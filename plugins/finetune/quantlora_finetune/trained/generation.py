"""`generate_all`: replies to many prompts in batches, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from transformers import set_seed

from quantlora import write_file
from quantlora.errors import FinetuneError
from quantlora_finetune.run.limits import existing
from quantlora_finetune.trained.prompts import Prompt
from quantlora_finetune.trained.reply import Sampling, check_room, prompt_ids, replies
from quantlora_finetune.trained.trained_model import TrainedModel, open_trained


@dataclass(frozen=True)
class Request:
    """What is asked of which model, and how it is to reply."""

    folder: Path
    model: str | None
    prompts: Sequence[Prompt]
    sampling: Sampling
    seed: int


def generate_all(
    request: Request, output: Path | None, batch_size: int, *, with_base: bool, console: Console
) -> None:
    """Reply to all prompts; to ``output``, or as lines on standard output.

    Raises:
        FinetuneError: the output exists, or a prompt leaves no room for a reply.
    """
    if output is not None and output.exists():
        raise FinetuneError(f"{output} exists: name another file with --output.")
    if output is not None:
        _check_folder(output)
    with console.status(f"loading {request.folder}"):
        trained = open_trained(request.folder, request.model)
    ids = [prompt_ids(trained, prompt) for prompt in request.prompts]
    for prompt in ids:
        check_room(trained, prompt, request.sampling.max_tokens)
    lines = _lines(trained, request, ids, batch_size, with_base, console)
    if output is None:
        for line in lines:
            print(line, flush=True)
        return
    text = "".join(f"{line}\n" for line in lines)
    write_file(output, lambda path: path.write_text(text, "utf-8"), replace=False)
    console.print(f"{len(ids)} replies in {output}.", soft_wrap=True)


def _check_folder(output: Path) -> None:
    """Find before the first reply that ``output`` could not be written after the last."""
    folder = existing(output.expanduser().parent)
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        why = "it is not writable" if folder.is_dir() else "it is not a folder"
        raise FinetuneError(
            f"{output} cannot be written into {folder}: {why}. Name another file with --output."
        )


def _lines(
    trained: TrainedModel,
    request: Request,
    ids: Sequence[list[int]],
    batch_size: int,
    with_base: bool,
    console: Console,
) -> Iterator[str]:
    """One JSON object for each prompt, in order."""
    starts = range(0, len(ids), batch_size)
    shown = track(starts, "replying", console=console, disable=not console.is_terminal)
    for start in shown:
        batch = ids[start : start + batch_size]
        found = {"reply": _seeded(trained, batch, request, start, base=False)}
        if with_base:
            found["base_reply"] = _seeded(trained, batch, request, start, base=True)
        for i, prompt in enumerate(request.prompts[start : start + batch_size]):
            named: dict[str, Any] = {"prompt": prompt, **{k: v[i] for k, v in found.items()}}
            yield json.dumps(named, ensure_ascii=False)


def _seeded(
    trained: TrainedModel, batch: Sequence[list[int]], request: Request, start: int, base: bool
) -> list[str]:
    """Adapter and base draw the same numbers, each batch others."""
    set_seed(request.seed + start)
    with trained.without_adapter() if base else nullcontext():
        return replies(trained, batch, request.sampling)
