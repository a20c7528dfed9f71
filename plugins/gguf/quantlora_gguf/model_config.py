"""The model's config from a file's metadata, by Transformers, without reading a vocabulary.

Its reader makes several objects for each token and merge: 1.5 GB and half a minute for Gemma's
262,144 tokens, to learn ten numbers. It is given a file with those numbers only.
"""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from quantlora import pretrained
from quantlora_gguf.gguf_file import MAGIC, GgufFile

#: A tensor's entry after its name: one dimension of size 0, float32, at the beginning.
_EMPTY = struct.pack("<IQIQ", 1, 0, 0, 0)
_EMBEDDING = "token_embd.weight"


def model_config(file: GgufFile) -> Any:
    """The config of the model in ``file``.

    Raises:
        ConfigError: Transformers does not know the architecture, or lacks a number.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = file.path if _read_quickly(file) else Path(folder) / "model.gguf"
        if path != file.path:
            path.write_bytes(_without_vocabulary(file))
        config = pretrained(
            str(file.path), lambda: AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        )
    text = config.get_text_config()
    if _EMBEDDING in file.tensors and hasattr(text, "vocab_size"):
        text.vocab_size = file.tensors[_EMBEDDING].shape[0]
    return config


def _read_quickly(file: GgufFile) -> bool:
    """Whether Transformers has a reader for this architecture that skips what it does not need."""
    try:
        from transformers.integrations.gguf.gguf_config_mapping import GGUF_CONFIG_ARCHS
    except ImportError:
        return False
    return file.architecture in GGUF_CONFIG_ARCHS


def _without_vocabulary(file: GgufFile) -> bytes:
    """A file with the metadata of ``file`` but its vocabulary, and its tensors, all empty."""
    kept = list(file.raw_entries.values())
    name, rows = f"{file.architecture}.vocab_size", file.tensors.get(_EMBEDDING)
    if name not in file.metadata and rows is not None:
        kept.append(_text(name) + struct.pack("<II", 4, rows.shape[0]))
    head = MAGIC + struct.pack("<IQQ", 3, len(file.tensors), len(kept))
    tensors = [_text(name) + _EMPTY for name in file.tensors]
    whole = b"".join([head, *kept, *tensors])
    return whole + bytes(64 - len(whole) % 32)


def _text(value: str) -> bytes:
    """A text as files have it, its length before it."""
    return struct.pack("<Q", len(value.encode())) + value.encode()
