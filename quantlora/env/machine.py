"""The computer: system, processor and its instruction sets, memory."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

from quantlora.hardware import physical_memory

CPUINFO = Path("/proc/cpuinfo")

#: Instruction sets that change what a backend does here, by the kernel's name for each.
FLAGS = {"avx2": "avx2", "avx512f": "avx512f", "avx512_bf16": "avx512_bf16", "amx": "amx_tile"}


@dataclass(frozen=True)
class Machine:
    """What the report says of the computer; ``None`` where it could not be found out.

    Args:
        cores: cores this process may use.
        memory_gib: physical memory in GiB.
        flags: instruction sets by their name in `FLAGS`.
    """

    system: str
    python: str
    architecture: str
    cpu: str
    cores: int | None
    memory_gib: float | None
    flags: Mapping[str, bool | None]

    @classmethod
    def look(cls) -> Machine:
        return cls(
            system=f"{platform.system()} {platform.release()}",
            python=platform.python_version(),
            architecture=platform.machine(),
            cpu=_cpuinfo().get("model name") or platform.processor() or "unknown",
            cores=_cores(),
            memory_gib=_memory(),
            flags=dict(cpu_flags()),
        )


@cache
def cpu_flags() -> Mapping[str, bool | None]:
    """Whether the processor has each of `FLAGS`; None where the system does not say.

    Reads a file or asks ``sysctl``; imports nothing, so a plugin's check may call it.
    """
    listed = _cpuinfo().get("flags", "") if CPUINFO.exists() else _sysctl()
    if listed is None:
        return MappingProxyType(dict.fromkeys(FLAGS))
    words = set(listed.lower().split())
    return MappingProxyType({name: word in words for name, word in FLAGS.items()})


@cache
def _cpuinfo() -> dict[str, str]:
    """The first processor's entry: hundreds of cores repeat it."""
    try:
        first = CPUINFO.read_text(errors="replace").split("\n\n", 1)[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _sysctl() -> str | None:
    names = ["machdep.cpu.features", "machdep.cpu.leaf7_features"]
    try:
        done = subprocess.run(["sysctl", "-n", *names], capture_output=True, text=True, timeout=1)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout


def _cores() -> int | None:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _memory() -> float | None:
    memory = physical_memory()
    return None if memory is None else round(memory / 2**30, 1)
