"""Ollama's Modelfile beside what is exported."""

from __future__ import annotations

MODELFILE = "Modelfile"


def modelfile(model: str, adapter: str | None = None) -> str:
    """Its text.

    Args:
        model: a GGUF file, relative to the Modelfile or absolute, or a folder of safetensors.
        adapter: the adapter's file, beside the Modelfile.
    """
    lines = ["# ollama create my-model -f Modelfile", f"FROM {model}"]
    if adapter is not None:
        lines.append(f"ADAPTER ./{adapter}")
    return "\n".join([*lines, ""])
