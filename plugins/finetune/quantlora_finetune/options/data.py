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
            "Names of columns, ours=theirs with commas between them: `prompt=question`, "
            "`completion=answer`.",
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
    validation: Annotated[
        float | None,
        option(
            _DATA,
            "Share of the rows to measure on, drawn by --seed, in place of the data's end.",
            min=0.001,
            max=0.9,
        ),
    ] = None
    eval_data: Annotated[
        str | None,
        option(_DATA, "Measure on these data, as --data; all of --data is trained on then."),
    ] = None
    eval_examples: Annotated[
        int, option(_DATA, "Measure on at most so many held-out examples.", min=1)
    ] = 48
    template: Annotated[
        str | None,
        option(
            _DATA,
            "How conversations are written: a Jinja file, or one of alpaca, chatml, gemma, llama3, "
            "mistral, phi3, vicuna, zephyr. Default: the model's own chat template.",
            metavar="FILE|NAME",
        ),
    ] = None
    system: Annotated[
        str | None,
        option(_DATA, "System message of the conversations that have none."),
    ] = None
    train_on_prompt: Annotated[
        bool,
        option(
            _DATA,
            "Learn prompts and users' turns too, not the answers alone.",
            "--train-on-prompt",
        ),
    ] = False
    packing: Annotated[
        bool,
        option(
            _DATA,
            "Put several short examples into one row of --length tokens; none sees another.",
            "--packing",
        ),
    ] = False
    prompt: Annotated[
        str | None,
        option(
            _DATA,
            "Continue this text before and after training. Default: a held-out example's start.",
        ),
    ] = None
