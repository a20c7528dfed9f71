"""An adapter to a folder and back onto a model; both read and write the same files."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

import quantlora
from tests.benchmarks import arms
from tests.benchmarks.arms import Size
from tests.benchmarks.reference import WrongNumbersError
from tests.benchmarks.result import Result
from tests.benchmarks.timing import interleaved

FORM = "float"


def run(size: Size, device: str) -> Result:
    result = Result("Save and load an adapter", "ms", "peft")
    base = arms.packed(size, FORM, device)
    mine = arms.ours(base, size)
    theirs: Any = arms.peft(base, mine, FORM, size)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        saving = {
            "quantlora": lambda: quantlora.save_adapter(mine, folder / "quantlora"),
            "peft": lambda: theirs.save_pretrained(folder / "peft"),
        }
        result.add("save", interleaved(saving, "peft", size.rounds), {})
        _check_same(folder)
        loading = {"quantlora": _mine(base, folder), "peft": _theirs(base, folder)}
        result.add("load", interleaved(loading, "peft", size.rounds), {})
    return result


def _check_same(folder: Path) -> None:
    mine, theirs = (
        load_file(folder / who / "adapter_model.safetensors") for who in ("quantlora", "peft")
    )
    if mine.keys() != theirs.keys() or not all(torch.equal(mine[k], theirs[k]) for k in mine):
        raise WrongNumbersError("the files of quantlora and PEFT are not the same")


def _bare(base: nn.Module) -> nn.Module:
    """The model again, with the very same tensors."""
    shared = {id(tensor): tensor for tensor in (*base.parameters(), *base.buffers())}
    return copy.deepcopy(base, shared)


def _mine(base: nn.Module, folder: Path) -> Callable[[], object]:
    return lambda: quantlora.load_adapter(_bare(base), folder / "quantlora")


def _theirs(base: nn.Module, folder: Path) -> Callable[[], object]:
    from peft import PeftModel

    return lambda: PeftModel.from_pretrained(_bare(base), folder / "peft")
