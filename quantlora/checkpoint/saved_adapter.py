"""`SavedAdapter`: what the files of an adapter say, in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from packaging.version import InvalidVersion, Version
from torch import Tensor

from quantlora.config.lora_config import LoraConfig

#: The first PEFT whose A and B on experts are as they are today; before, they were each other's.
_EXPERTS_SINCE = Version("0.19")


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

    @property
    def says_old_experts(self) -> bool:
        """Whether its version says that adapters on experts are in the layout before PEFT 0.19.

        PEFT notes its version since then, or little before: a file without one is old. One that
        cannot be read is of a development build.
        """
        if self.note.get("quantlora"):
            return False
        try:
            return Version(self.peft_version or "0") < _EXPERTS_SINCE
        except InvalidVersion:
            return False
