"""Every promise on a CPU and on a GPU by the same tests; without a GPU they say so."""

from __future__ import annotations

import pytest
import torch

CUDA = pytest.param("cuda", marks=pytest.mark.cuda)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU here: unverified"))


@pytest.fixture(params=["cpu", CUDA])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)
