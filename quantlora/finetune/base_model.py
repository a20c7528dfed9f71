"""The model before it is wrapped: found, checked, loaded with its tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from quantlora.bridge.transformers_bridge import dtype_argument
from quantlora.errors import FinetuneError
from quantlora.finetune import demo_model
from quantlora.finetune.option_fields import Dtype
from quantlora.finetune.options import FinetuneOptions

T = TypeVar("T")


@dataclass(frozen=True)
class BaseModel:
    """Where a model is, and what its config says; the weights are not loaded yet."""

    name: str
    place: str
    config: Any
    tokenizer: PreTrainedTokenizerBase

    @property
    def is_quantized(self) -> bool:
        return getattr(self.config, "quantization_config", None) is not None

    @property
    def is_demo(self) -> bool:
        return self.name == demo_model.NAME

    @property
    def padding(self) -> int:
        """The id that batches are filled up with; masked, so any will do."""
        ids = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(int(one) for one in ids if isinstance(one, int))


def find_base(options: FinetuneOptions) -> BaseModel:
    """The model that ``options`` name, with its tokenizer.

    Raises:
        FinetuneError: there is no such folder or hub id, the hub cannot be reached, it is not a
            causal language model, or the examples are longer than it can read.
    """
    name = options.model or demo_model.NAME
    place = _place(options.model)
    config = _from(place, lambda: AutoConfig.from_pretrained(place))
    tokenizer = _from(place, lambda: AutoTokenizer.from_pretrained(place))
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise FinetuneError(f"{name} ({config.model_type}) is not a causal language model.")
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and options.length > longest:
        raise FinetuneError(f"--length {options.length}: {name} reads at most {longest} tokens.")
    return BaseModel(name, place, config, tokenizer)


def load_model(base: BaseModel, dtype: Dtype) -> PreTrainedModel:
    """The weights: quantized ones as they are, float ones in ``dtype``.

    Float models are loaded on the CPU, to be quantized before they are moved anywhere.
    """
    where: dict[str, Any] = {}
    if base.is_quantized and torch.cuda.is_available():
        where["device_map"] = {"": torch.cuda.current_device()}
    chosen = compute_dtype(dtype)
    model: PreTrainedModel = _from(
        base.place,
        lambda: AutoModelForCausalLM.from_pretrained(base.place, **dtype_argument(chosen), **where),
    )
    return model


def compute_dtype(choice: Dtype) -> torch.dtype:
    """The dtype asked for; `auto` is bfloat16 only where the hardware multiplies it."""
    if choice is not Dtype.AUTO:
        dtype: torch.dtype = getattr(torch, choice.value)
        return dtype
    return torch.bfloat16 if _multiplies_bfloat16() else torch.float32


def _multiplies_bfloat16() -> bool:
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    describe: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
    facts = describe()  # of newer torches; older ones compute in float32
    return bool(facts.get("avx512_bf16") or facts.get("amx_bf16"))


def _place(model: str | None) -> str:
    if model is None:
        return str(demo_model.demo_model())
    path = Path(model).expanduser()
    if path.is_file():
        raise FinetuneError(f"{path} is a file: give the model's folder.")
    if path.is_dir() and not (path / "config.json").is_file():
        raise FinetuneError(f"{path}: there is no config.json; is it a model's folder?")
    if not path.is_dir() and (model.startswith((".", "/", "~")) or model.count("/") > 1):
        raise FinetuneError(f"there is no folder {path} (looked in {Path.cwd()}).")
    return str(path.resolve()) if path.is_dir() else model


def _from(place: str, load: Callable[[], T]) -> T:
    """What ``load`` gives; whatever Transformers says against it, in one sentence."""
    try:
        return load()
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        if Path(place).is_dir():
            raise FinetuneError(f"{place} cannot be loaded: {_first_line(error)}") from error
        raise FinetuneError(
            f"{place}: there is no such folder here, and it cannot be fetched from the Hugging "
            f"Face hub: {_first_line(error)} Check the name and the network, log in with "
            f"`hf auth login` if the model is gated, or give a folder."
        ) from error


def _first_line(error: BaseException) -> str:
    line = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {line.rstrip('.')}."
