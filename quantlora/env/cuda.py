"""Accelerators, their driver, and whether torch was built for them. Nothing is imported."""

from __future__ import annotations

import ast
import importlib.metadata
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from quantlora.checks import Note

#: Seconds nvidia-smi may take; a machine with a sleeping driver needs one or two.
PATIENCE = 1.5

_QUERY = "--query-gpu=name,memory.total,driver_version,compute_cap"


@dataclass(frozen=True)
class Accelerator:
    """One device.

    Args:
        kind: torch's name for the device type: ``cuda``, ``mps``.
        memory_gib: its memory in GiB.
        driver: the driver's version.
        capability: NVIDIA's compute capability, e.g. ``9.0``.
    """

    kind: str
    name: str
    memory_gib: float | None = None
    driver: str | None = None
    capability: str | None = None


@dataclass(frozen=True)
class TorchBuild:
    """What torch was compiled for, from its ``version.py``: versions of CUDA and ROCm or None."""

    cuda: str | None = None
    hip: str | None = None


@dataclass(frozen=True)
class Accelerators:
    """All devices, the highest CUDA the driver can run, and torch's build."""

    devices: tuple[Accelerator, ...]
    driver_cuda: str | None
    torch: TorchBuild
    notes: tuple[Note, ...]

    @classmethod
    def look(cls) -> Accelerators:
        devices, driver_cuda, fault = _nvidia()
        build = torch_build()
        notes = _mismatch(devices, driver_cuda, build)
        return cls((*devices, *_others()), driver_cuda, build, (*fault, *notes))


def torch_build() -> TorchBuild:
    """Read, not imported: importing torch takes seconds."""
    try:
        path = importlib.metadata.distribution("torch").locate_file("torch/version.py")
        text = Path(str(path)).read_text()
        found = re.findall(r"^(cuda|hip)\b[^=]*=\s*(None|'[^']*'|\"[^\"]*\")", text, re.M)
        return TorchBuild(**{name: ast.literal_eval(value) for name, value in found})
    except (importlib.metadata.PackageNotFoundError, OSError, SyntaxError):
        return TorchBuild()


def _nvidia() -> tuple[tuple[Accelerator, ...], str | None, tuple[Note, ...]]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return (), None, ()
    asked = [_start([tool, _QUERY, "--format=csv,noheader,nounits"]), _start([tool])]
    table, banner = [_output(process) for process in asked]
    devices = tuple(_device(line) for line in table.splitlines() if line.count(",") == 3)
    cuda = re.search(r"CUDA Version\s*:\s*(\d+\.\d+)", banner)
    fault = Note(
        f"nvidia-smi is here but names no device: {' '.join(table.split())[:200] or 'no answer'}",
        "restart the driver, or give the container its GPU (docker run --gpus all)",
    )
    return devices, cuda and cuda.group(1), () if devices else (fault,)


def _start(command: list[str]) -> subprocess.Popen[str] | None:
    try:
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
    except OSError:
        return None


def _output(process: subprocess.Popen[str] | None) -> str:
    if process is None:
        return ""
    try:
        return process.communicate(timeout=PATIENCE)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        return ""


def _device(line: str) -> Accelerator:
    name, memory, driver, capability = (cell.strip() for cell in line.split(","))
    gib = round(int(memory) / 1024, 1) if memory.isdigit() else None
    return Accelerator("cuda", name, gib, driver, capability)


def _others() -> tuple[Accelerator, ...]:
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return (Accelerator("mps", "Apple GPU"),)
    if Path("/dev/kfd").exists():  # torch calls ROCm's devices cuda as well
        return (Accelerator("cuda", "AMD GPU (ROCm)"),)
    return ()


def _mismatch(
    devices: tuple[Accelerator, ...], driver_cuda: str | None, build: TorchBuild
) -> tuple[Note, ...]:
    if not devices:
        return ()
    if build.cuda is None:
        return (
            Note(
                "an NVIDIA GPU is here, but torch is built without CUDA and cannot use it",
                "pip install --force-reinstall torch  (see https://pytorch.org/get-started/locally)",
            ),
        )
    if driver_cuda and int(driver_cuda.split(".")[0]) < int(build.cuda.split(".")[0]):
        major = driver_cuda.split(".")[0]
        return (
            Note(
                f"torch is built for CUDA {build.cuda}, the driver runs CUDA {driver_cuda} at most",
                f"update the NVIDIA driver, or install a torch built for CUDA {major} "
                f"(see https://pytorch.org/get-started/previous-versions)",
            ),
        )
    return ()
