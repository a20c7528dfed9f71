"""`BaseNames`: what llama.cpp calls the tensors of a Transformers model, and how it orders rows."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from quantlora import BackendError, pretrained, resolve_model
from quantlora_gguf.gguf_file import MAGIC, GgufFile
from quantlora_gguf.load_model import without_weights
from quantlora_gguf.model_config import model_config
from quantlora_gguf.tensor_names import TensorNames

#: Transformers' model types whose name in llama.cpp is another one.
_ARCHITECTURES = {
    "mistral": "llama",
    "mixtral": "llama",
    "gemma3_text": "gemma3",
    "gemma4_text": "gemma4",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "cohere": "command-r",
    "gpt_oss": "gpt-oss",
    "minimax_m2": "minimax-m2",
}
#: The text part of a model for text and pictures, in paths.
_TEXT_PART = re.compile(r"\blanguage_model\.|\btext_model\.")


class BaseNames:
    """The base of an adapter without its weights.

    Args:
        source: a folder, a hub id or a GGUF file.

    Raises:
        ConfigError: there is no such model.
        BackendError: llama.cpp has no such architecture, or the package ``gguf`` does not know it.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        path = Path(source).expanduser()
        self.file = GgufFile(path.resolve()) if is_gguf(path) else None
        self.config: Any = _config(source, self.file).get_text_config()
        self.architecture = _architecture(self.config, self.file)
        self.model = without_weights(self.config)
        self.names = TensorNames(self.model, self.architecture)

    @cached_property
    def _by_parameter(self) -> dict[str, str]:
        return {own: name for name, own in self.names.names.items()}

    @property
    def is_tied(self) -> bool:
        """Whether the file has no head of its own."""
        return bool(getattr(self.config, "tie_word_embeddings", False))

    def tensor_of(self, parameter: str) -> str | None:
        """llama.cpp's name of a parameter, None where it has none."""
        return self._by_parameter.get(_TEXT_PART.sub("", parameter))

    def shape_of(self, parameter: str) -> tuple[int, ...]:
        """The parameter's shape in Transformers."""
        return tuple(self.model.state_dict()[_TEXT_PART.sub("", parameter)].shape)

    def in_file_order(self, tensor: str, rows: Tensor, width: int) -> Tensor | None:
        """``rows`` ``(out, ...)`` of a matrix ``(out, width)`` as the file has them.

        None where the file holds other elements than the model, so that no order gives them.
        """
        order = self.names.row_order(tensor, (len(rows), width))
        if order is None:
            return None
        return rows if order.rows is None else rows[torch.argsort(order.rows)]


def is_gguf(path: Path) -> bool:
    """Whether there is such a file, by its first bytes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _config(source: str, file: GgufFile | None) -> Any:
    if file is not None:
        return model_config(file)
    resolved = resolve_model(source)
    return pretrained(resolved, lambda: AutoConfig.from_pretrained(resolved))


def _architecture(config: Any, file: GgufFile | None) -> str:
    import gguf

    if file is not None:
        return file.architecture
    found: str = _ARCHITECTURES.get(config.model_type, config.model_type)
    if found not in gguf.MODEL_ARCH_NAMES.values():
        raise BackendError(
            f"architecture {config.model_type!r} is not one that llama.cpp has, as far as the "
            f"package gguf knows (pip install -U gguf): merge the adapter, and serve the model by "
            f"Transformers, vLLM or SGLang."
        )
    return found
