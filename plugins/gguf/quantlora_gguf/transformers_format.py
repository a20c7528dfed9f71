"""Blocks as Transformers sees them: a ``quantization_config`` and what loads it."""

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
from quantlora_gguf.model_plan import empty_layer

#: Not "gguf", which is Transformers' own, for files.
METHOD = "ggml_blocks"


class GgmlBlocksConfig(QuantizationConfigMixin):
    """``quantization_config`` of a checkpoint: the block type of each packed layer, by path."""

    def __init__(self, layers: Mapping[str, str], **kwargs: Any) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]  # theirs is a closed enum
        self.layers = dict(layers)


class GgmlBlocksHfQuantizer(HfQuantizer):
    """Puts empty packed layers where the config names them, for the blocks to be loaded into."""

    is_trainable = True

    def __init__(self, quantization_config: GgmlBlocksConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.pre_quantized = True

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        config: Any = self.quantization_config
        for path, block_type in in_this_model(model, config.layers).items():
            old: Any = model.get_submodule(path)
            model.set_submodule(path, empty_layer(old, block_type, old.weight.dtype))

    def get_new_dtype(self, converter: Any, param: Any, dtype: torch.dtype | None) -> Any:
        """Blocks are bytes; the float rest is cast to what was asked for."""
        return dtype

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> Any:
        return model

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        return True


def block_types(layers: Mapping[str, nn.Module]) -> dict[str, str]:
    """The block type of each layer, by path."""
    return {path: str(layer.block_type) for path, layer in layers.items()}


def register() -> None:
    """Tell Transformers about the format; a second call does nothing."""
    if METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(METHOD)(GgmlBlocksConfig)
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantizer(METHOD)(GgmlBlocksHfQuantizer)
