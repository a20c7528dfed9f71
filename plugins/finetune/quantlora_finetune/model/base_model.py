"""The model before it is wrapped: found, checked, loaded with its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from quantlora import dtype_argument, load, pretrained, resolve_model
from quantlora.errors import FinetuneError
from quantlora_finetune.model import demo_model
from quantlora_finetune.model.compute_dtype import compute_dtype
from quantlora_finetune.model.model_file import is_model_file, transformers_source
from quantlora_finetune.options.choices import Dtype
from quantlora_finetune.options.finetune_options import FinetuneOptions


@dataclass(frozen=True)
class BaseModel:
    """Where a model is, and what its config says; the weights are not loaded yet."""

    name: str
    model_id_or_path: str
    config: Any
    tokenizer: PreTrainedTokenizerBase

    @property
    def is_quantized(self) -> bool:
        packed = getattr(self.config, "quantization_config", None) is not None
        return packed or is_model_file(self.model_id_or_path)

    @property
    def is_demo(self) -> bool:
        return self.name == demo_model.NAME

    @property
    def longest(self) -> int | None:
        """Tokens that it has positions for; None where there is no limit."""
        longest: int | None = getattr(
            self.config.get_text_config(), "max_position_embeddings", None
        )
        return longest

    @property
    def padding(self) -> int:
        """The id that batches are filled up with; masked, so any will do."""
        ids = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(int(token) for token in ids if isinstance(token, int))


def find_base(options: FinetuneOptions) -> BaseModel:
    """The model that ``options`` name, with its tokenizer.

    Raises:
        ConfigError: as `base_named`.
        FinetuneError: as `base_named`; or the examples are longer than it reads.
    """
    base = base_named(options.model)
    check_length(base, options.length)
    return base


def check_length(base: BaseModel, length: int) -> None:
    """Raise `FinetuneError` where examples of ``length`` tokens are longer than ``base`` reads."""
    if base.longest is not None and length > base.longest:
        raise FinetuneError(
            f"--length {length}: {base.name} reads at most {base.longest} tokens at once."
        )


def base_named(model: str | None) -> BaseModel:
    """The model in a folder, a file or on the hub, with its tokenizer; None: the demonstration's.

    Raises:
        ConfigError: there is no such folder, file or hub id, or the hub cannot be reached.
        FinetuneError: it is not a causal language model.
    """
    name = model or demo_model.NAME
    model_id_or_path = _resolved(model) if model else str(demo_model.demo_model())
    source, where = transformers_source(model_id_or_path)
    config = pretrained(model_id_or_path, lambda: AutoConfig.from_pretrained(source, **where))
    tokenizer = pretrained(model_id_or_path, lambda: AutoTokenizer.from_pretrained(source, **where))
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise FinetuneError(f"{name} ({config.model_type}) is not a causal language model.")
    return BaseModel(name, model_id_or_path, config, tokenizer)


def _resolved(model: str) -> str:
    return str(Path(model).expanduser().resolve()) if is_model_file(model) else resolve_model(model)


def load_model(base: BaseModel, dtype: Dtype) -> PreTrainedModel:
    """The weights: quantized ones as they are, float ones in ``dtype``.

    Float models are loaded on the CPU, to be quantized before they are moved anywhere.
    """
    where: dict[str, Any] = {}
    if base.is_quantized and torch.cuda.is_available():
        where["device_map"] = {"": torch.cuda.current_device()}
    chosen = compute_dtype(dtype)
    if base.is_quantized:  # as its file has it, where Transformers would dequantize
        return cast(PreTrainedModel, load(base.model_id_or_path, dtype=chosen, **where))
    model: PreTrainedModel = pretrained(
        base.model_id_or_path,
        lambda: AutoModelForCausalLM.from_pretrained(
            base.model_id_or_path, **dtype_argument(chosen), **where
        ),
    )
    return model
