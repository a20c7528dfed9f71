"""`load_gguf`: a Transformers model from a GGUF file, its matrices packed as the file has them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from quantlora import pretrained
from quantlora_gguf.gguf_file import GgufFile
from quantlora_gguf.model_config import model_config
from quantlora_gguf.model_plan import ModelPlan
from quantlora_gguf.tensor_names import TensorNames
from quantlora_gguf.transformers_format import GgmlBlocksConfig, register

#: So many names are enough to know what it is about.
_NAMED = 4


def load_gguf(
    path: Path, dtype: torch.dtype | str | None = None, model_class: Any = None, **arguments: Any
) -> Any:
    """The model in the file at ``path``, in evaluation mode.

    Args:
        dtype: of the float parts and of what is computed; default float32.
        model_class: Transformers' class or auto class; default: a language model, if it is one.
        arguments: further ones of ``from_pretrained``: ``device_map``, ``attn_implementation``.

    Raises:
        ConfigError: the file is damaged, or is not the model that it says it is.
        BackendError: Transformers does not know the names of its tensors.
    """
    file = GgufFile(path)
    config = model_config(file)
    model = without_weights(config) if model_class is None else _of_class(model_class, config)
    names = TensorNames(model, file.architecture)
    plan = ModelPlan.of(file, model, names)
    _warn(path, plan)
    register()
    config._name_or_path = str(path)
    loaded = pretrained(
        str(path),
        lambda: type(model).from_pretrained(
            None,
            config=config,
            state_dict=_state(file, plan, names),
            quantization_config=GgmlBlocksConfig(plan.layers),
            dtype=_dtype(dtype),
            **arguments,
        ),
    )
    loaded.config._name_or_path = loaded.name_or_path = str(path)
    return loaded


def without_weights(config: Any) -> Any:
    """The model of ``config`` on the meta device."""
    autos: tuple[Any, ...] = (AutoModelForCausalLM, AutoModelForSeq2SeqLM)
    known = (auto for auto in autos if type(config) in auto._model_mapping)
    auto: Any = next(known, AutoModel)
    with torch.device("meta"):
        return auto.from_config(config)


def _of_class(model_class: Any, config: Any) -> Any:
    with torch.device("meta"):
        return getattr(model_class, "from_config", model_class)(config)


def _dtype(asked: torch.dtype | str | None) -> torch.dtype:
    if asked is None or asked == "auto":
        return torch.float32
    return getattr(torch, asked) if isinstance(asked, str) else asked


def _warn(path: Path, plan: ModelPlan) -> None:
    """Name what is not packed, and what is not read at all."""
    if plan.unpacked:
        shown = [f"{name} ({why})" for name, why in list(plan.unpacked.items())[:_NAMED]]
        _say(path, f"{len(plan.unpacked)} tensors in blocks become float", shown, plan.unpacked)
    if plan.unused:
        _say(path, "the model has no parameter for", plan.unused[:_NAMED], plan.unused)


def _say(path: Path, what: str, shown: list[str], all_of_them: Any) -> None:
    more = len(all_of_them) - len(shown)
    tail = f" and {more} more" if more else ""
    warnings.warn(f"{path.name}: {what}: {', '.join(shown)}{tail}.", stacklevel=5)


class _Lazy:
    """A tensor that is read when Transformers' loader takes it, ``tensor[...]``."""

    def __init__(self, file: GgufFile, plan: ModelPlan, names: TensorNames, name: str) -> None:
        self.file, self.plan, self.names, self.name = file, plan, names, name

    def __getitem__(self, _: Any) -> Tensor:
        sources = self.plan.sources[self.name]
        order = self.plan.orders.get(self.name)
        if order is not None:
            packed = self.file.packed(sources[0])
            return packed if order.rows is None else packed[order.rows]
        parts: dict[str, Tensor] = {}
        for source in sources:
            self.names.changed(source, self.file.values(source), parts)
        return parts[self.name]


def _state(file: GgufFile, plan: ModelPlan, names: TensorNames) -> Mapping[str, Any]:
    return {name: _Lazy(file, plan, names, name) for name in plan.sources}
