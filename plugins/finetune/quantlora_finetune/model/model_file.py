"""A model in one file: its config and tokenizer are in there too."""

from __future__ import annotations

from pathlib import Path

_MAGIC = b"GGUF"


def is_model_file(model: str) -> bool:
    """Whether ``model`` is the path of a GGUF file."""
    path = Path(model).expanduser()
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def transformers_source(model_id_or_path: str) -> tuple[str, dict[str, str]]:
    """What ``from_pretrained`` wants for it: a folder or id, and further arguments."""
    if not is_model_file(model_id_or_path):
        return model_id_or_path, {}
    path = Path(model_id_or_path)
    return str(path.parent), {"gguf_file": path.name}
