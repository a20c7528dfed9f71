"""docs/examples/cluster: each file as far as one machine can tell."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from quantlora.testing.models import save_tiny_llama

pytest.importorskip("accelerate")
CLUSTER = Path(__file__).parents[2] / "docs" / "examples" / "cluster"
SCRIPTS = [path.name for path in CLUSTER.iterdir() if path.suffix in (".sh", ".sbatch")]
#: Of sbatch(1), Slurm 25.05: those that such a job may have.
SBATCH = {
    "job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time", "requeue",
    "open-mode", "output", "error", "partition", "account", "mem", "constraint", "signal",
}  # fmt: skip


def text(name: str) -> str:
    return (CLUSTER / name).read_text()


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_script_parses_and_may_be_run(name: str) -> None:
    subprocess.run(["bash", "-n", str(CLUSTER / name)], check=True)
    assert os.access(CLUSTER / name, os.X_OK)


def test_slurm_s_options_are_sbatch_s_and_come_first() -> None:
    lines = text("slurm.sbatch").splitlines()
    given = [line for line in lines if line.startswith("#SBATCH")]
    assert lines[1 : 1 + len(given)] == given  # those behind a command would not count
    assert {re.match(r"#SBATCH --([\w-]+)", line)[1] for line in given} <= SBATCH


def test_skypilot_s_task_has_its_fields_and_its_commands_parse() -> None:
    task = yaml.safe_load(text("skypilot.yaml"))
    fields = {"name", "num_nodes", "resources", "envs", "workdir", "file_mounts", "setup", "run"}
    assert set(task) == fields
    assert task["envs"]["OUTPUT"] in task["file_mounts"]
    for command in (task["setup"], task["run"]):
        subprocess.run(["bash", "-n"], input=command, text=True, check=True)


def test_skypilot_reads_the_task() -> None:
    sky = pytest.importorskip("sky", reason="SkyPilot is not installed")
    task = sky.Task.from_yaml_config(yaml.safe_load(text("skypilot.yaml")))
    assert task.num_nodes == 2


@pytest.fixture
def job(tmp_path: Path) -> dict[str, str]:
    """The environment of a small run."""
    save_tiny_llama(tmp_path / "model")
    row = {"prompt": "one two ", "completion": "three"}
    (tmp_path / "data.jsonl").write_text((json.dumps(row) + "\n") * 40)
    given = {
        "MODEL": str(tmp_path / "model"), "DATA": str(tmp_path / "data.jsonl"),
        "OUTPUT": str(tmp_path / "run"), "PYTHON": sys.executable, "PROCESSES": "1",
        "OPTIONS": "--steps 60 --backend normalfloat --eval-examples 4", "SAVE_EVERY": "10",
        "HEAD": "localhost", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    return {**os.environ, **given}


def start(script: Path | str, job: dict[str, str], log: Path, **more: str) -> subprocess.Popen[Any]:
    """In a session of its own, so that all its processes can be ended."""
    with log.open("w") as out:
        return subprocess.Popen(
            [str(script)], env={**job, **more}, stdout=out, stderr=out, start_new_session=True
        )


def finished(jobs: list[subprocess.Popen[Any]], logs: list[Path], seconds: float = 400) -> None:
    try:
        codes = [one.wait(seconds) for one in jobs]
    finally:
        for one in jobs:
            if one.poll() is None:
                os.killpg(one.pid, signal.SIGKILL)
    assert codes == [0] * len(jobs), "\n".join(log.read_text()[-3000:] for log in logs)


def report(job: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(job["OUTPUT"], "report.json").read_text())
    return found


def worker(job: dict[str, str]) -> int:
    """The process id of one worker, once the run has a checkpoint."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if list(Path(job["OUTPUT"]).glob("checkpoints/checkpoint-*/complete")):
            found = subprocess.run(
                ["pgrep", "-f", f"quantlora finetune.*{job['OUTPUT']}"],
                capture_output=True,
                text=True,
            )
            return int(found.stdout.split()[-1])
        time.sleep(0.2)
    raise TimeoutError("no checkpoint")


@pytest.mark.slow
def test_two_nodes_train_by_gloo_and_go_on_after_a_lost_worker(
    job: dict[str, str], tmp_path: Path
) -> None:
    logs = [tmp_path / "node0.log", tmp_path / "node1.log"]
    more = {"NODES": "2", "PORT": "29613", "RUN_ID": "lost"}
    jobs = [start(CLUSTER / "torchrun.sh", job, log, **more) for log in logs]
    os.kill(worker(job), signal.SIGKILL)
    finished(jobs, logs)
    assert report(job)["options"]["steps"] == 60
    assert len(report(job)["training"]["steps"]) == 60
    assert any("Going on after step" in log.read_text() for log in logs)


@pytest.mark.slow
def test_slurm_s_job_runs_with_stand_ins_for_its_commands(
    job: dict[str, str], tmp_path: Path
) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "scontrol").write_text("#!/bin/sh\necho localhost\n")
    (tools / "srun").write_text('#!/bin/sh\nshift\nexec "$@"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    slurm = {
        "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "localhost", "SLURM_JOB_ID": "7",
        "SLURM_GPUS_ON_NODE": "1", "SLURM_SUBMIT_DIR": str(CLUSTER), "PORT": "29614",
        "PATH": f"{tools}:{os.environ['PATH']}", "OPTIONS": "--steps 10 --backend float",
    }  # fmt: skip
    log = tmp_path / "log"
    finished([start(CLUSTER / "slurm.sbatch", job, log, **slurm)], [log])
    assert Path(job["OUTPUT"], "adapter_model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
def test_ray_trains_on_two_workers_of_this_machine(job: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, str(CLUSTER / "ray_train.py"), job["MODEL"], job["DATA"]]
    options = ["--steps", "4", "--save_every", "2"]
    local = {"RAY_raylet_start_wait_time_s": "180", "RAY_AUTH_MODE": "disabled"}  # a busy machine
    done = subprocess.run(
        [*command, job["OUTPUT"], *options],
        env={**job, **local}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert Path(job["OUTPUT"], "adapter_model.safetensors").exists()
    assert Path(job["OUTPUT"], "checkpoints", "checkpoint-4").exists()
