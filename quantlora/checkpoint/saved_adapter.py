"""`SavedAdapter`: what the files of an adapter say, in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from quantlora.config.lora_config import LoraConfig


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter in memory: config, tensors by their keys in the file, and quantlora's note.

    Args:
        peft_version: of the PEFT that has written it, if one has.
    """

    config: LoraConfig
    tensors: dict[str, Tensor]
    note: dict[str, Any]
    peft_version: str = ""
