"""The options that say what is trained on, and how it is cut and split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from quantlora_finetune.options.choices import option

_DATA = "Data"


@dataclass(frozen=True)
class DataOptions:
    """The data, and how it is cut and split."""

    data: Annotated[
        str | None,
        option(
            _DATA,
            "A text file; a .jsonl, .json, .csv, .tsv or .parquet file whose rows have `text`, "
            "`prompt` and `completion`, `messages`, or another usual form (docs/finetune.md); a "
            "folder of such files; or a data set on "
            "the hub as `id` or `id:config`. "
            "Default: the Python language reference.",
            "--data",
            "-d",
        ),
    ] = None
    map: Annotated[
        str | None,
        option(
            _DATA,
            "Names of columns, ours=theirs: `prompt=question,completion=answer`.",
        ),
    ] = None
    split: Annotated[str, option(_DATA, "The part of a hub data set to use.")] = "train"
    length: Annotated[
        int,
        option(
            _DATA,
            "Tokens per example: texts are cut into windows of it, conversations are cut off.",
            min=8,
        ),
    ] = 128
    held_out: Annotated[
        float,
        option(_DATA, "Share of the data, at its end, kept for measuring.", min=0.001, max=0.9),
    ] = 0.1
    eval_examples: Annotated[
        int, option(_DATA, "Measure on at most so many held-out examples.", min=1)
    ] = 48
    prompt: Annotated[
        str | None,
        option(
            _DATA,
            "Continue this text before and after training. Default: a held-out example's start.",
        ),
    ] = None
