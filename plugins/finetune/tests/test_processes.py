"""``torchrun`` and ``accelerate launch``: two processes end where one does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from .conftest import report_in

pytestmark = pytest.mark.slow

LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--nproc-per-node", "2", "-m"],
    "accelerate launch": [  # --multi_gpu: through torchrun, on CPUs too; --cpu would want MPI
        "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "-m",
    ],
}  # fmt: skip


def _adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_train_the_adapter_that_one_does(run, arguments, tmp_path, launcher):
    """At equal global batch, up to the order of sums: 1e-5 relative, over 12 steps."""
    two = [*arguments, "--output", str(tmp_path / "two")]
    command = [sys.executable, "-m", *LAUNCHERS[launcher], "quantlora", *two]
    done = subprocess.run(command, timeout=300, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run(*arguments, "--batch-size", "4", "--output", tmp_path / "one")
    one, two = (_adapter(tmp_path / name) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-5, atol=1e-6)
    losses = [
        [step["loss"] for step in report_in(tmp_path / name)["training"]["steps"]]
        for name in ("one", "two")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)  # Trainer rounds to four places
    assert done.stdout.count("Held-out perplexity after training") == 1
