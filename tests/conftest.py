"""Fixtures for all of the core's tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # torch and huggingface_hub read the settings below when they are imported
    from torch import Tensor

    from tests.tools.small_models import Model

if "PYTEST_XDIST_WORKER" in os.environ:  # processes side by side must not share out each core twice
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when huggingface_hub is imported

DATA = Path(__file__).parent / "data"

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def run_python() -> RunPython:
    """Run ``python *arguments`` in a process of its own, with ``path`` first on its path.

    A relative ``path`` is a folder of ``tests/data``; further keywords are environment variables.
    """

    def run(*arguments: str, path: Iterable[str | Path] = (), check: bool = True, **env: str):
        place = os.pathsep.join(str(DATA / one) for one in path)
        return subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            check=check,
            timeout=300,
            env={**os.environ, "PYTHONPATH": place, **env},
        )

    return run


@pytest.fixture
def model() -> Model:
    import torch

    from tests.tools.small_models import Model

    torch.manual_seed(0)
    return Model()


@pytest.fixture
def x() -> Tensor:
    import torch

    return torch.randn(5, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def wrapped(model: Model) -> Callable[..., Model]:
    """The model with random A and B on ``q_proj`` and ``up_proj``, or as the fields say."""

    def make(adapter_name: str = "default", **fields: Any) -> Model:
        import quantlora

        given = {"r": 2, "target_modules": ["q_proj", "up_proj"], "init_lora_weights": False}
        return quantlora.wrap(model, adapter_name=adapter_name, **{**given, **fields})

    return make
