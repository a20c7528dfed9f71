"""Two trained folders beside each other: settings, figures on the same data, the same prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from quantlora.errors import FinetuneError
from quantlora_finetune.data.examples import Example
from quantlora_finetune.trained.reply import Sampling, check_room, prompt_ids, replies
from quantlora_finetune.trained.score import Score, eval_data
from quantlora_finetune.trained.side_by_side import shown_score
from quantlora_finetune.trained.trained_folder import CONFIG, TrainedFolder, trained_folder
from quantlora_finetune.trained.trained_model import TrainedModel, open_trained

#: Fields that say where a run was, not how.
_NO_SETTINGS = {"output", "resume", "save_every", "report_to"}


@dataclass(frozen=True)
class Trial:
    """One folder's score and its replies, in the order of the prompts."""

    score: Score
    replies: list[str]


def different_settings(first: Path, second: Path) -> dict[str, tuple[Any, Any]]:
    """Settings that the two folders do not share, by name."""
    folders = [trained_folder(path) for path in (first, second)]
    settings = _run_settings if all(folder.options for folder in folders) else _adapter_settings
    here, there = map(settings, folders)
    names = dict.fromkeys([*here, *there])
    return {n: (here.get(n), there.get(n)) for n in names if here.get(n) != there.get(n)}


def _run_settings(folder: TrainedFolder) -> dict[str, Any]:
    found = folder.options.as_json() if folder.options else {}
    return {name: value for name, value in found.items() if name not in _NO_SETTINGS}


def _adapter_settings(folder: TrainedFolder) -> dict[str, Any]:
    """PEFT's names: what every adapter says, whichever program has trained it."""
    file = folder.path / CONFIG
    found = dict(json.loads(file.read_text("utf-8"))) if file.is_file() else {}
    return {name: value for name, value in found.items() if value not in (None, {}, [], False)}


@dataclass(frozen=True)
class Measures:
    """What both folders are put to."""

    data: str | None
    split: str
    length: int | None
    examples: int
    prompts: Sequence[str]
    sampling: Sampling
    batch_size: int
    map: str | None = None


def trials(
    first: Path, second: Path, measures: Measures, console: Console
) -> tuple[str, Trial, Trial]:
    """The data's name, and both folders on it; one model is in memory at a time.

    Raises:
        FinetuneError: the tokenizers differ, so that perplexities cannot be compared.
    """
    trained = open_trained(first)
    given = eval_data(
        trained,
        measures.data,
        measures.split,
        measures.length,
        measures.examples,
        measures.map,
    )
    vocabulary = _vocabulary(trained)
    found = _trial(trained, given.examples, measures, console)
    del trained
    other = open_trained(second)
    if _vocabulary(other) != vocabulary:
        raise FinetuneError(
            f"{first} and {second} have models with different tokenizers, and perplexities by "
            f"token cannot be compared. Use `quantlora eval` for each."
        )
    return given.name, found, _trial(other, given.examples, measures, console)


def _vocabulary(trained: TrainedModel) -> dict[str, int]:
    tokenizer: Any = trained.tokenizer.tokenizer
    return dict(tokenizer.get_vocab())


def _trial(
    trained: TrainedModel, examples: Sequence[Example], measures: Measures, console: Console
) -> Trial:
    what = str(trained.folder.path)
    ids = [prompt_ids(trained, text) for text in measures.prompts]
    for prompt in ids:
        check_room(trained, prompt, measures.sampling.max_tokens)
    found = shown_score(trained, examples, measures.batch_size, console, what)
    return Trial(found, [replies(trained, [prompt], measures.sampling)[0] for prompt in ids])
