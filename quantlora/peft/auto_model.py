"""``AutoPeftModelForCausalLM.from_pretrained(adapter)``: the base and its adapter in one call."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any, ClassVar

import transformers

from quantlora.checkpoint.location import CONFIG, DEFAULT, find_folder
from quantlora.errors import AdapterFileError
from quantlora.peft.config import LoraConfig
from quantlora.peft.model import PeftModel

#: Libraries that a file may name a class of: importing a module runs it.
_ALLOWED = ("transformers", "diffusers")


class AutoPeftModel:
    """The base by the class that the adapter's file names, with the adapter on it."""

    #: Name of Transformers' class for the task; empty: the file says which.
    base_class: ClassVar[str] = ""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        adapter_name: str = DEFAULT,
        is_trainable: bool = False,
        config: None = None,
        revision: str | None = None,
        *,
        token: str | bool | None = None,
        backend: str = "auto",
        **kwargs: Any,
    ) -> Any:
        """Load the base that the adapter's file names, then the adapter.

        Args:
            pretrained_model_name_or_path: the adapter's folder or hub id.
            backend: as in `load_adapter`: ``"saved"`` packs a float base as it was in training.
            kwargs: for the base's ``from_pretrained``: ``dtype``, ``quantization_config``, ...

        Raises:
            AdapterFileError: the file names no base, or no class that may be loaded.
        """
        folder = find_folder(pretrained_model_name_or_path, adapter_name, revision, token)
        found = LoraConfig.from_pretrained(folder)
        if not found.base_model_name_or_path:
            raise AdapterFileError(
                f"{folder / CONFIG}: base_model_name_or_path is not set: load the base yourself, "
                f"then quantlora.load_adapter(base, folder)."
            )
        base = cls._base(folder).from_pretrained(
            found.base_model_name_or_path, revision=found.revision, token=token, **kwargs
        )
        _grow(base, folder)
        return PeftModel.from_pretrained(
            base, folder, adapter_name, is_trainable, config, backend=backend
        )

    @classmethod
    def _base(cls, folder: Path) -> Any:
        if cls.base_class:
            return getattr(transformers, cls.base_class)
        mapping = json.loads((folder / CONFIG).read_text("utf-8")).get("auto_mapping") or {}
        library, name = str(mapping.get("parent_library")), mapping.get("base_model_class")
        if library.partition(".")[0] not in _ALLOWED or not name:
            raise AdapterFileError(
                f"{folder / CONFIG}: auto_mapping names no class of {' or '.join(_ALLOWED)}: use "
                f"the class for the task, AutoPeftModelForCausalLM and so on."
            )
        return getattr(importlib.import_module(library), name)


def _grow(base: Any, folder: Path) -> None:
    """Embeddings for the tokens of a tokenizer that was saved with the adapter."""
    if (folder / "tokenizer_config.json").is_file() and hasattr(base, "get_input_embeddings"):
        size = len(transformers.AutoTokenizer.from_pretrained(folder))
        if size > len(base.get_input_embeddings().weight):
            base.resize_token_embeddings(size)


class AutoPeftModelForCausalLM(AutoPeftModel):
    base_class = "AutoModelForCausalLM"


class AutoPeftModelForSeq2SeqLM(AutoPeftModel):
    base_class = "AutoModelForSeq2SeqLM"


class AutoPeftModelForSequenceClassification(AutoPeftModel):
    base_class = "AutoModelForSequenceClassification"


class AutoPeftModelForTokenClassification(AutoPeftModel):
    base_class = "AutoModelForTokenClassification"


class AutoPeftModelForQuestionAnswering(AutoPeftModel):
    base_class = "AutoModelForQuestionAnswering"


class AutoPeftModelForFeatureExtraction(AutoPeftModel):
    base_class = "AutoModel"
