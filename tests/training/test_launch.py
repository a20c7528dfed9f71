"""``accelerate launch`` with two processes ends with the adapter of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

SCRIPT = str(Path(__file__).parent / "launched.py")
LAUNCH = (
    "-m",
    "accelerate.commands.launch",
    "--cpu",
    "--num_processes",
    "2",
    "--num_machines",
    "1",
)
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "backend", ["float", "bitsandbytes_4bit", "bitsandbytes_8bit", "normalfloat"]
)
def test_two_processes_end_where_one_does(backend: str, run_python: Any, tmp_path: Path) -> None:
    options = ("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0")
    run_python(SCRIPT, str(tmp_path / "one"), backend, path=[ROOT])
    run_python(*LAUNCH, *options, SCRIPT, str(tmp_path / "two"), backend, path=[ROOT])
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert max(float((one[key] - two[key]).abs().max()) for key in one) < 1e-5
    assert any(bool(tensor.any()) for key, tensor in two.items() if "lora_B" in key)
