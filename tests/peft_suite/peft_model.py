"""PEFT's `PeftModel` and functions, by their names and arguments, over quantlora.

Thin on purpose: each method is one call of quantlora. What quantlora has no counterpart of is not
here, so the test that wants it fails and is counted as lacking.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import quantlora
from quantlora.checkpoint.config_file import read_config
from quantlora.checkpoint.save import adapter_tensors
from quantlora.config.lora_config import LoraConfig


def own_config(config: Any) -> LoraConfig:
    """PEFT's config as quantlora's: the same fields; what is unset there is the default here."""
    if isinstance(config, LoraConfig):
        return config
    given = {name: value for name, value in vars(config).items() if value not in (None, {}, False)}
    for name in ("auto_mapping", "peft_version", "runtime_config", "megatron_core", "peft_type"):
        given.pop(name, None)
    if not config.init_lora_weights:
        given["init_lora_weights"] = False
    if getattr(config, "task_type", None) is not None:
        given["task_type"] = str(getattr(config.task_type, "value", config.task_type))
    given.setdefault("target_modules", None)
    return LoraConfig.from_fields(given)


class BaseTuner(nn.Module):
    """``peft_model.base_model``: the name under which PEFT keeps the model."""

    prefix = "lora_"

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":
                raise
            return getattr(self.model, name)


class PeftModel(nn.Module):
    """PEFT's names for what quantlora does with ``base_model.model``."""

    def __init__(self, model: nn.Module, config: Any, adapter_name: str = "default", **_: Any):
        super().__init__()
        self.peft_config: dict[str, Any] = {adapter_name: config}
        self.base_model = BaseTuner(model)
        with_mode = model.training
        quantlora.wrap(model, own_config(config), adapter_name=adapter_name)
        model.train(with_mode)

    @classmethod
    def from_pretrained(
        cls,
        model: nn.Module,
        model_id: Any,
        adapter_name: str = "default",
        is_trainable: bool = False,
        **_: Any,
    ) -> PeftModel:
        quantlora.load_adapter(model, model_id, adapter_name, is_trainable=is_trainable)
        found = cls.__new__(cls)
        nn.Module.__init__(found)
        found.peft_config = {adapter_name: _file_config(model_id, adapter_name)}
        found.base_model = BaseTuner(model)
        return found

    @property
    def _model(self) -> nn.Module:
        return self.base_model.model

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_model":
                raise
            return getattr(self.base_model, name)

    def forward(self, *args: Any, adapter_names: Any = None, **kwargs: Any) -> Any:
        if adapter_names is None:
            return self._model(*args, **kwargs)
        with quantlora.mixed_batch(self._model, adapter_names):
            return self._model(*args, **kwargs)

    # -- adapters

    def add_adapter(self, adapter_name: str, config: Any, **_: Any) -> None:
        before = quantlora.active_adapters(self._model)
        quantlora.wrap(self._model, own_config(config), adapter_name=adapter_name)
        quantlora.set_adapter(self._model, before)
        self.peft_config[adapter_name] = config

    def load_adapter(self, model_id: Any, adapter_name: str, is_trainable: bool = False, **_: Any):
        before = quantlora.active_adapters(self._model)
        quantlora.load_adapter(self._model, model_id, adapter_name, is_trainable=is_trainable)
        quantlora.set_adapter(self._model, before)
        self.peft_config[adapter_name] = _file_config(model_id, adapter_name)

    def save_pretrained(self, folder: Any, selected_adapters: Any = None, **_: Any) -> None:
        for name in selected_adapters or self.peft_config:
            place = Path(folder) if name == "default" else Path(folder) / name
            quantlora.save_adapter(self._model, place, name)

    def set_adapter(self, adapter_name: Any, **_: Any) -> None:
        quantlora.set_adapter(self._model, adapter_name)

    def delete_adapter(self, adapter_name: str) -> None:
        quantlora.delete_adapter(self._model, adapter_name)
        del self.peft_config[adapter_name]

    @property
    def active_adapters(self) -> list[str]:
        return quantlora.active_adapters(self._model)

    @property
    def active_adapter(self) -> str:
        return self.active_adapters[0]

    @contextlib.contextmanager
    def disable_adapter(self) -> Iterator[None]:
        with quantlora.adapters_disabled(self._model):
            yield

    def disable_adapter_layers(self) -> None:
        quantlora.disable_adapters(self._model)

    def enable_adapter_layers(self) -> None:
        quantlora.enable_adapters(self._model)

    # -- merging

    def merge_adapter(self, adapter_names: Any = None, safe_merge: bool = False) -> None:
        quantlora.merge(self._model, adapter_names)

    def unmerge_adapter(self) -> None:
        quantlora.unmerge(self._model)

    def merge_and_unload(
        self, progressbar: bool = False, safe_merge: bool = False, adapter_names: Any = None
    ) -> nn.Module:
        return quantlora.merge_and_unload(self._model, adapter_names)

    def unload(self) -> nn.Module:
        return quantlora.unload(self._model)

    def add_weighted_adapter(
        self, adapters: Any, weights: Any, adapter_name: str, combination_type: str = "svd", **more
    ) -> None:
        quantlora.add_weighted_adapter(
            self._model, adapters, weights, adapter_name, combination_type, **more
        )
        self.peft_config[adapter_name] = copy.deepcopy(self.peft_config[adapters[0]])

    # -- what is there

    def get_base_model(self) -> nn.Module:
        return self._model

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        sizes = [(one.numel(), one.requires_grad) for one in self.parameters()]
        return sum(n for n, trained in sizes if trained), sum(n for n, _ in sizes)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("quantlora uploads nothing")


def _file_config(folder: Any, adapter_name: str) -> LoraConfig:
    place = Path(folder)
    inner = place / adapter_name
    return read_config(inner if inner.is_dir() else place)


def get_peft_model(model: nn.Module, config: Any, adapter_name: str = "default", **more: Any):
    return PeftModel(model, config, adapter_name, **more)


def inject_adapter_in_model(
    config: Any, model: nn.Module, adapter_name: str = "default", **_: Any
) -> nn.Module:
    quantlora.wrap(model, own_config(config), adapter_name=adapter_name)
    model.peft_config = {adapter_name: config}  # type: ignore[assignment]
    return model


def get_peft_model_state_dict(
    model: nn.Module, state_dict: Any = None, adapter_name: str = "default", **_: Any
) -> dict[str, Tensor]:
    inner = model._model if isinstance(model, PeftModel) else model
    return dict(adapter_tensors(inner, adapter_name, state_dict))


def prepare_model_for_compiled_hotswap(model: Any, *, target_rank: int = 128, **_: Any) -> None:
    quantlora.prepare_hot_swap(model._model, r=target_rank)


def hotswap_adapter(model: Any, path: Any, adapter_name: str = "default", **_: Any) -> None:
    quantlora.hot_swap(model._model, path, adapter_name)
