"""The format as Transformers sees it: a ``quantization_config`` and what loads it.

quantlora_normalfloat.register()
model = AutoModelForCausalLM.from_pretrained(folder)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from quantlora import in_this_model
from quantlora_normalfloat.layer import NormalFloatLinear, settings

METHOD = "normalfloat"


class NormalFloatConfig(QuantizationConfigMixin):
    """``quantization_config`` of a checkpoint: the settings of each packed layer, by path."""

    def __init__(self, layers: Mapping[str, Mapping[str, Any]], **kwargs: Any) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]  # theirs is a closed enum
        self.layers = {path: dict(settings) for path, settings in layers.items()}

    @classmethod
    def of(cls, layers: Mapping[str, nn.Module]) -> NormalFloatConfig:
        """That of these layers."""
        return cls({path: checkpoint_settings(layer) for path, layer in layers.items()})


class NormalFloatHfQuantizer(HfQuantizer):
    """Puts empty packed layers where the config names them, for the weights to be loaded into."""

    is_trainable = True

    def __init__(self, quantization_config: NormalFloatConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.dtype: torch.dtype | None = None
        if not self.pre_quantized:
            raise ValueError(
                "normalfloat checkpoints are loaded as they are; to quantize a float model use "
                "quantlora.wrap(model, backend='normalfloat') or the command quantlora loftq."
            )

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        self.dtype = dtype
        return dtype

    def get_new_dtype(self, converter: Any, param: Any, dtype: torch.dtype | None) -> None:
        """As stored: scales must not be rounded. The float rest is cast once all is loaded."""
        return None

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        config: Any = self.quantization_config
        for path, given in in_this_model(model, config.layers).items():
            old: Any = model.get_submodule(path)
            size = (old.in_features, old.out_features, old.bias is not None)
            new = NormalFloatLinear(*size, device="meta", dtype=old.weight.dtype, **given)
            model.set_submodule(path, new)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> Any:
        if self.dtype is not None:
            nn.Module.to(model, self.dtype)
        return model

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        return True


def checkpoint_settings(layer: nn.Module) -> dict[str, Any]:
    """The keyword arguments that make an empty layer for ``layer``'s state."""
    assert isinstance(layer, NormalFloatLinear)
    ordered = {"ordered": True} if layer.order is not None else {}
    return {**settings(layer), **ordered}


def register() -> None:
    """Tell Transformers about the format; a second call does nothing."""
    if METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(METHOD)(NormalFloatConfig)
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantizer(METHOD)(NormalFloatHfQuantizer)
