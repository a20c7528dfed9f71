"""Installed versions, and whether a Hugging Face token is set."""

from __future__ import annotations

import importlib.metadata
import os
from dataclasses import dataclass
from pathlib import Path

PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "safetensors",
    "pluggy",
    "packaging",
    "bitsandbytes",
    "gptqmodel",
    "auto-gptq",
    "optimum",
    "scipy",
    "peft",
    "triton",
)

_TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def package_versions() -> dict[str, str | None]:
    """Version by package; None where it is not installed, ``unreadable`` for broken metadata."""
    return {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name) or "unreadable"
    except importlib.metadata.PackageNotFoundError:
        return None
    except Exception:
        return "unreadable"


@dataclass(frozen=True)
class Token:
    """Whether a Hugging Face token is set, and where; never its value."""

    set: bool
    where: str

    @classmethod
    def look(cls) -> Token:
        for name in _TOKEN_VARIABLES:
            if os.environ.get(name):
                return cls(True, name)
        path = _token_file()
        return cls(True, str(path)) if path.is_file() else cls(False, "")

    @property
    def text(self) -> str:
        if self.set:
            return f"set by {self.where}; gated models (Llama, Gemma, ...) can be downloaded"
        return "not set; open models need none, gated ones (Llama, Gemma, ...) need HF_TOKEN"


def _token_file() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("HF_HOME", f"{cache}/huggingface")
    return Path(os.environ.get("HF_TOKEN_PATH", f"{home}/token")).expanduser()
