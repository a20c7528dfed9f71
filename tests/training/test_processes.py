"""Two processes train the model that one would, by DDP and by FSDP2, and save it whole."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

DDP = [f"ddp:{one}" for one in ("auto", "bitsandbytes_4bit", "bitsandbytes_8bit", "normalfloat")]
Runs = dict[str, dict[str, Any]]
HERE = Path(__file__).parent
#: bitsandbytes_4bit in uint8 storage, and in float32 storage, as accelerate wants it.
FSDP2 = [
    f"fsdp2:{one}"
    for one in ("auto", "bitsandbytes_4bit", "bitsandbytes_4bit_float32", "normalfloat")
]


@pytest.fixture(scope="module")
def runs(run_python: Any, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    script = str(HERE / "two_processes.py")
    run = run_python(script, str(tmp_path_factory.mktemp("runs")), *DDP, *FSDP2)
    found: Runs = json.loads(run.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("pair", [*DDP, *FSDP2])
def test_losses_are_those_of_one_process(pair: str, runs: Runs) -> None:
    assert runs[pair]["learned"] > 0.1
    assert runs[pair]["loss"] < 1e-5


@pytest.mark.parametrize("pair", [*DDP, *FSDP2])
def test_the_saved_adapter_is_that_of_one_process(pair: str, runs: Runs) -> None:
    assert runs[pair]["adapters"]["."] < 1e-5


@pytest.mark.parametrize("folder", ["given", "checkpoint-4"])
@pytest.mark.parametrize("pair", FSDP2)
def test_a_gathered_state_is_saved_from_one_process(pair: str, folder: str, runs: Runs) -> None:
    """As Trainer does under FSDP2."""
    assert runs[pair]["adapters"][folder] < 1e-5


@pytest.mark.parametrize(
    ("call", "text"),
    [("merge", "save_adapter on all of them"), ("partial", "give the full state_dict")],
)
@pytest.mark.parametrize("pair", FSDP2)
def test_what_shards_cannot_do_is_an_error(pair: str, call: str, text: str, runs: Runs) -> None:
    assert text in runs[pair]["errors"][call]
    assert "none" not in runs[pair]["adapters"]


ZERO = [
    f"{stage}:{backend}"
    for stage in ("zero2", "zero3")
    for backend in ("auto", "normalfloat", "bitsandbytes_8bit", "bitsandbytes_4bit")
]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
@pytest.mark.parametrize("pair", [*ZERO, "zero3:bitsandbytes_4bit_float32"])
def test_deepspeed_trains_and_saves_what_one_process_would(
    pair: str, run_python: Any, tmp_path: Path
) -> None:
    script, place = str(HERE / "deepspeed_processes.py"), {"path": [HERE.parents[1]]}
    run = run_python(script, str(tmp_path), pair, **place, LOCAL_RANK="0", DS_ACCELERATOR="cpu")
    found = json.loads(run.stdout.splitlines()[-1])[pair]
    assert found["loss"] < 1e-5
    assert found["adapters"]["."] < 1e-5
