"""Two processes train the model that one would, by DDP and by FSDP2, and save it whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

DDP = [f"ddp:{one}" for one in ("auto", "bitsandbytes_4bit", "bitsandbytes_8bit", "normalfloat")]
#: bitsandbytes_4bit in uint8 storage, and in float32 storage, as accelerate wants it.
FSDP2 = [
    f"fsdp2:{one}"
    for one in ("auto", "bitsandbytes_4bit", "bitsandbytes_4bit_float32", "normalfloat")
]


@pytest.fixture(scope="module")
def runs(run_python: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    script = str(Path(__file__).parent / "two_processes.py")
    run = run_python(script, str(tmp_path_factory.mktemp("runs")), *DDP, *FSDP2)
    found: dict[str, dict[str, Any]] = json.loads(run.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("pair", [*DDP, *FSDP2])
def test_losses_are_those_of_one_process(pair: str, runs: dict[str, dict[str, Any]]) -> None:
    assert runs[pair]["learned"] > 0.1
    assert runs[pair]["loss"] < 1e-5


@pytest.mark.parametrize("pair", [*DDP, *FSDP2])
def test_the_saved_adapter_is_that_of_one_process(
    pair: str, runs: dict[str, dict[str, Any]]
) -> None:
    assert runs[pair]["shapes"] is True
    assert runs[pair]["adapter"] < 1e-5


@pytest.mark.parametrize("pair", FSDP2)
def test_a_merge_of_shards_is_an_error(pair: str, runs: dict[str, dict[str, Any]]) -> None:
    assert "save_adapter on all of them" in runs[pair]["merge"]
