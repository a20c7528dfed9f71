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
from torch.nn.modules.module import _IncompatibleKeys

import quantlora
from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.checkpoint.adapter_tensors import adapter_tensors
from quantlora.checkpoint.match_tensors import fill
from tests.peft_suite.given_adapters import load, wrap


class BaseTuner(nn.Module):
    """``peft_model.base_model``: the name under which PEFT keeps the model."""

    prefix = "lora_"

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @property
    def active_adapters(self) -> list[str]:
        return quantlora.active_adapters(self.model)

    @property
    def active_adapter(self) -> list[str]:
        return self.active_adapters

    def set_adapter(self, adapter_name: Any, **_: Any) -> None:
        quantlora.set_adapter(self.model, adapter_name)

    def delete_adapter(self, adapter_name: str) -> None:
        quantlora.delete_adapter(self.model, adapter_name)
        del self.peft_config[adapter_name]

    @property
    def has_active_enabled_adapter(self) -> bool:
        layers = quantlora.lora_layers(self.model)
        return any(layer.enabled and layer.active for _, layer in layers)

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

    _is_prompt_learning = False

    def __init__(
        self,
        model: nn.Module,
        config: Any,
        adapter_name: str = "default",
        autocast_adapter_dtype: bool = True,
        **_: Any,
    ):
        super().__init__()
        with_mode = model.training
        wrap(model, config, adapter_name, autocast_adapter_dtype)
        model.train(with_mode)
        self._keep(model, {adapter_name: config})

    def _keep(self, model: nn.Module, configs: dict[str, Any]) -> None:
        self.base_model = BaseTuner(model)
        self.peft_config = self.base_model.peft_config = configs

    @classmethod
    def from_pretrained(
        cls,
        model: nn.Module,
        model_id: Any,
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: Any = None,
        autocast_adapter_dtype: bool = True,
        **_: Any,
    ) -> PeftModel:
        given = load(model, model_id, adapter_name, is_trainable, autocast_adapter_dtype, config)
        found = cls.__new__(cls)
        nn.Module.__init__(found)
        found._keep(model, {adapter_name: given})
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

    def add_adapter(
        self, adapter_name: str, config: Any, autocast_adapter_dtype: bool = True, **_: Any
    ) -> None:
        before = quantlora.active_adapters(self._model)
        wrap(self._model, config, adapter_name, autocast_adapter_dtype)
        quantlora.set_adapter(self._model, before)
        self.peft_config[adapter_name] = config

    def load_adapter(
        self,
        model_id: Any,
        adapter_name: str,
        is_trainable: bool = False,
        autocast_adapter_dtype: bool = True,
        **_: Any,
    ) -> Any:
        before = quantlora.active_adapters(self._model)
        given = load(self._model, model_id, adapter_name, is_trainable, autocast_adapter_dtype)
        quantlora.set_adapter(self._model, before)
        self.peft_config[adapter_name] = given
        return _IncompatibleKeys([], [])  # keys that do not fit are an error of quantlora's

    def save_pretrained(self, folder: Any, selected_adapters: Any = None, **_: Any) -> None:
        for name in selected_adapters or self.peft_config:
            place = Path(folder) if name == "default" else Path(folder) / name
            quantlora.save_adapter(self._model, place, name)

    def set_adapter(self, adapter_name: Any, **_: Any) -> None:
        quantlora.set_adapter(self._model, adapter_name)

    def delete_adapter(self, adapter_name: str) -> None:
        self.base_model.delete_adapter(adapter_name)

    @property
    def active_peft_config(self) -> Any:
        return self.peft_config[self.active_adapter]

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


def get_peft_model(model: nn.Module, config: Any, adapter_name: str = "default", **more: Any):
    return PeftModel(model, config, adapter_name, **more)


def inject_adapter_in_model(
    config: Any, model: nn.Module, adapter_name: str = "default", **_: Any
) -> nn.Module:
    wrap(model, config, adapter_name)
    model.peft_config = {adapter_name: config}  # type: ignore[assignment]
    return model


def _wrapped(model: nn.Module) -> nn.Module:
    """The model that has the adapters, also inside of another wrapper."""
    return next((one._model for one in model.modules() if isinstance(one, PeftModel)), model)


def get_peft_model_state_dict(
    model: nn.Module, state_dict: Any = None, adapter_name: str = "default", **_: Any
) -> dict[str, Tensor]:
    return dict(adapter_tensors(AdaptedModel.of(_wrapped(model)), adapter_name, state_dict))


def set_peft_model_state_dict(
    model: nn.Module, peft_model_state_dict: Any, adapter_name: str = "default", **_: Any
) -> Any:
    """The values go into the adapter that is there, as PEFT's do; what has no place is named."""
    here = adapter_tensors(
        AdaptedModel.of(_wrapped(model)), adapter_name, save_embedding_layers=False
    )
    both = [name for name in here if name in peft_model_state_dict]
    fill("state_dict", {k: here[k] for k in both}, {k: peft_model_state_dict[k] for k in both})
    absent = [name for name in here if name not in peft_model_state_dict]
    return _IncompatibleKeys(absent, [name for name in peft_model_state_dict if name not in here])


def prepare_model_for_compiled_hotswap(model: Any, *, target_rank: int = 128, **_: Any) -> None:
    quantlora.prepare_hot_swap(model._model, r=target_rank)


def hotswap_adapter(model: Any, path: Any, adapter_name: str = "default", **_: Any) -> None:
    quantlora.hot_swap(model._model, path, adapter_name)
