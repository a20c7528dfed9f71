"""PEFT's config classes, with PEFT's defaults."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

from quantlora.checkpoint.config_file import config_text, read_config
from quantlora.checkpoint.location import CONFIG, DEFAULT, find_folder
from quantlora.config.lora_config import LoraConfig as OurConfig
from quantlora.files.atomic_set import write_set


class TaskType(str, Enum):
    """PEFT's names of tasks."""

    SEQ_CLS = "SEQ_CLS"
    SEQ_2_SEQ_LM = "SEQ_2_SEQ_LM"
    CAUSAL_LM = "CAUSAL_LM"
    TOKEN_CLS = "TOKEN_CLS"
    QUESTION_ANS = "QUESTION_ANS"
    FEATURE_EXTRACTION = "FEATURE_EXTRACTION"


class PeftType(str, Enum):
    """PEFT's names of methods: the one that is here."""

    LORA = "LORA"


@dataclass
class LoraConfig(OurConfig):
    """`quantlora.LoraConfig` with PEFT's defaults.

    Without ``target_modules`` the layers are those that PEFT has for the type of the model, and
    ``"all-linear"`` leaves out fused experts.
    """

    target_modules: list[str] | str | None = None
    target_experts: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return dataclasses.asdict(self)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write ``adapter_config.json``; options for the hub have no effect."""
        text = config_text(self, self.target_modules, self.base_model_name_or_path)
        write_set(Path(save_directory), {CONFIG: partial(_write, text)})

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        subfolder: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        **kwargs: Any,
    ) -> LoraConfig:
        """That of an adapter, in a folder or on the hub; ``kwargs`` for downloads have no effect.

        Raises:
            AdapterFileError: there is no config, or it is not LoRA's.
        """
        folder = find_folder(pretrained_model_name_or_path, subfolder or DEFAULT, revision, token)
        config, _ = read_config(folder)
        return cls(**vars(config))

    def __post_init__(self) -> None:
        for name in ("task_type", "peft_type"):
            value = getattr(self, name)
            setattr(self, name, value.value if isinstance(value, Enum) else value)
        super().__post_init__()


def _write(text: str, file: Path) -> None:
    file.write_text(text, "utf-8")


#: Of PEFT's methods there is LoRA, so its config is every config.
PeftConfig = LoraConfig


@dataclass
class LoftQConfig:
    """PEFT's ``loftq_config``."""

    loftq_bits: int = 4
    loftq_iter: int = 1


@dataclass
class EvaConfig:
    """PEFT's ``eva_config``."""

    rho: float = 2.0
    tau: float = 0.99
    use_label_mask: bool = True
    label_mask_value: int = -100
    whiten: bool = False
    adjust_scaling_factors: bool = True
