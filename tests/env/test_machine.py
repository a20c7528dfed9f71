"""What the report finds out about the computer, from files and tools put in its way."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from quantlora.env import cuda, machine
from quantlora.env.packages import Token, package_versions

BANNER = "| NVIDIA-SMI 550.54.15    Driver Version: 550.54.15    CUDA Version: {cuda}     |"
DEVICE = "NVIDIA H100 80GB HBM3, 81559, 550.54.15, 9.0"


@pytest.fixture
def cpuinfo(tmp_path: Path, monkeypatch):
    """Let the machine have this ``/proc/cpuinfo``; None: no such file."""

    def write(text: str | None) -> None:
        file = tmp_path / "cpuinfo"
        if text is not None:
            file.write_text(text)
        monkeypatch.setattr(machine, "CPUINFO", file)
        machine._cpuinfo.cache_clear()
        machine.cpu_flags.cache_clear()

    yield write
    machine._cpuinfo.cache_clear()
    machine.cpu_flags.cache_clear()


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch):
    """Put a tool of that name on the path that prints ``table`` to a query, else ``banner``."""

    def write(table: str, banner: str = BANNER.format(cuda="12.4"), sleep: float = 0) -> None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(
            f"#!/bin/sh\nsleep {sleep}\ncase $1 in --query*) echo '{table}';; "
            f"*) echo '{banner}';; esac\n"
        )
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return write


@pytest.fixture
def torch_built_for(tmp_path: Path, monkeypatch):
    """Put a distribution ``torch`` on the path whose ``version.py`` says so."""

    def write(version_file: str) -> None:
        (tmp_path / "torch-9.9.dist-info").mkdir()
        (tmp_path / "torch-9.9.dist-info" / "METADATA").write_text("Name: torch\nVersion: 9.9\n")
        (tmp_path / "torch").mkdir()
        (tmp_path / "torch" / "version.py").write_text(version_file)
        monkeypatch.syspath_prepend(tmp_path)

    return write


def test_flags_are_read_from_the_first_processor(cpuinfo):
    cpuinfo("processor: 0\nmodel name\t: Some CPU\nflags\t: fpu avx2 avx512f\n\nprocessor: 1\n")
    flags = {"avx2": True, "avx512f": True, "avx512_bf16": False, "amx": False}
    assert dict(machine.cpu_flags()) == flags
    assert machine.Machine.look().cpu == "Some CPU"


def test_amx_is_told_by_its_tiles(cpuinfo):
    cpuinfo("flags : avx2 avx512f avx512_bf16 amx_bf16 amx_tile amx_int8\n")
    assert machine.cpu_flags()["amx"] is True


def test_flags_are_unknown_where_nothing_says_them(cpuinfo, monkeypatch):
    cpuinfo(None)
    monkeypatch.setenv("PATH", "")
    assert set(machine.cpu_flags().values()) == {None}


def test_a_gpu_is_read_with_its_driver(nvidia_smi):
    nvidia_smi(DEVICE)
    found = cuda.Accelerators.look()
    assert found.devices[0] == cuda.Accelerator(
        "cuda", "NVIDIA H100 80GB HBM3", 79.6, "550.54.15", "9.0"
    )
    assert found.driver_cuda == "12.4"


def test_a_tool_that_hangs_does_not_hold_up_the_report(nvidia_smi, monkeypatch):
    monkeypatch.setattr(cuda, "PATIENCE", 0.2)
    nvidia_smi(DEVICE, sleep=20)
    start = time.perf_counter()
    found = cuda.Accelerators.look()
    assert time.perf_counter() - start < 5
    assert "no answer" in found.notes[0].text


def test_a_tool_that_fails_is_quoted(nvidia_smi):
    nvidia_smi("NVIDIA-SMI has failed because it could not communicate with the driver", "")
    (note,) = cuda.Accelerators.look().notes
    assert "could not communicate with the driver" in note.text
    assert "docker run --gpus all" in note.fix


@pytest.mark.parametrize(
    ("version_file", "build"),
    [
        ("cuda = '12.8'\nhip = None\n", cuda.TorchBuild("12.8", None)),
        ("cuda: Optional[str] = None\nhip: Optional[str] = '6.2'", cuda.TorchBuild(None, "6.2")),
        ('cuda: str | None = "13.0"\n', cuda.TorchBuild("13.0", None)),
        ("", cuda.TorchBuild()),
    ],
)
def test_torchs_build_is_read_not_imported(torch_built_for, version_file, build):
    torch_built_for(version_file)
    assert cuda.torch_build() == build


def test_a_gpu_with_a_cpu_build_of_torch_is_a_note(nvidia_smi, torch_built_for):
    nvidia_smi(DEVICE)
    torch_built_for("cuda = None\n")
    (note,) = cuda.Accelerators.look().notes
    assert "torch is built without CUDA" in note.text
    assert note.fix.startswith("pip install")


def test_a_driver_too_old_for_torch_is_a_note(nvidia_smi, torch_built_for):
    nvidia_smi(DEVICE, BANNER.format(cuda="12.4"))
    torch_built_for("cuda = '13.0'\n")
    (note,) = cuda.Accelerators.look().notes
    assert "built for CUDA 13.0, the driver runs CUDA 12.4 at most" in note.text


def test_a_later_minor_version_of_cuda_is_no_fault(nvidia_smi, torch_built_for):
    nvidia_smi(DEVICE, BANNER.format(cuda="12.4"))
    torch_built_for("cuda = '12.8'\n")
    assert cuda.Accelerators.look().notes == ()


def test_packages_that_are_not_installed_have_no_version():
    versions = package_versions()
    assert versions["torch"]
    assert versions["auto-gptq"] is None or versions["auto-gptq"]


def test_broken_metadata_of_a_package_are_said(tmp_path: Path, monkeypatch):
    (tmp_path / "triton-1.0.dist-info").mkdir()
    (tmp_path / "triton-1.0.dist-info" / "METADATA").write_bytes(b"\xff\xfe")
    monkeypatch.syspath_prepend(tmp_path)
    assert package_versions()["triton"] == "unreadable"


@pytest.mark.parametrize("variable", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"])
def test_a_token_in_the_environment_is_named_by_its_variable(monkeypatch, variable):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv(variable, "hf_value")
    assert Token.look() == Token(True, variable)


def test_a_token_file_is_named_by_its_path(tmp_path: Path, monkeypatch):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert Token.look().set is False
    (tmp_path / "token").write_text("hf_value")
    assert Token.look() == Token(True, str(tmp_path / "token"))
