"""What a figure was measured on: without it, it says nothing."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import torch

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "gptqmodel")


def machine(device: str) -> dict[str, object]:
    """The processor and its instructions, memory, threads, the GPU's name and the versions."""
    flags = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "instructions": [name for name in ("avx2", "avx512_bf16", "amx_bf16") if flags.get(name)],
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "python": platform.python_version(),
        **{name: version for name in LIBRARIES if (version := _version(name))},
    }


def sentence(facts: dict[str, object]) -> str:
    """The same for a page."""
    where = facts["gpu"] or facts["processor"]
    versions = ", ".join(f"{name} {facts[name]}" for name in LIBRARIES if name in facts)
    flags = ", ".join(facts["instructions"]) or "no bfloat16 products"  # type: ignore[arg-type]
    return (
        f"{where} ({flags}), {facts['cores']} cores shared with other work, "
        f"{facts['threads']} thread(s), {facts['memory_gib']} GiB; {versions}"
    )


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
