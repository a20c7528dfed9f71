"""Real layers of whichever GPTQ library this environment has."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Read by the libraries when they are imported.
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from torch import nn

from . import gptq_loading
from .gptq_checkpoint import Packed, Recipe, write_checkpoint


@pytest.fixture(autouse=True)
def _uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPTQModel compiles its plain kernel at the first forward, for a minute: not here."""
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")


Written = Callable[[Recipe], tuple[Path, dict[str, Packed]]]


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """``written(recipe)``: the checkpoint's folder and its weights; each is written once."""
    done: dict[Recipe, tuple[Path, dict[str, Packed]]] = {}

    def write(recipe: Recipe) -> tuple[Path, dict[str, Packed]]:
        if recipe not in done:
            folder = tmp_path_factory.mktemp(str(recipe))
            done[recipe] = folder, write_checkpoint(folder, recipe)
        return done[recipe]

    return write


@pytest.fixture(scope="session")
def load(written: Written) -> Callable[..., nn.Module]:
    """``load(recipe, way, kernel)``: a fresh model."""

    def loaded(recipe: Recipe, *place: Any, **options: Any) -> nn.Module:
        return gptq_loading.load(written(recipe)[0], *place, **options)

    return loaded
