"""What Transformers' ``from_pretrained`` knows of packing: a config and a quantizer of its own."""

from __future__ import annotations

from typing import Any

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

from quantlora.adapters.packed_config import note_packed
from quantlora.loading.pack_on_arrival import PackOnArrival

METHOD = "quantlora"


class PackingConfig(QuantizationConfigMixin):
    """``quantization_config`` of a model that is packed while it is loaded."""

    def __init__(self, job: PackOnArrival | None = None, **kwargs: Any) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]  # theirs is a closed enum
        self.job = job

    def to_dict(self) -> dict[str, Any]:
        return {"quant_method": METHOD}


class PackingHfQuantizer(HfQuantizer):
    """Gives each tensor that is to be packed to a `PackOnArrival`."""

    is_trainable = True

    def __init__(self, quantization_config: PackingConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.job = quantization_config.job

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        assert self.job is not None
        self.job.plan(model)

    def param_needs_quantization(
        self, model: PreTrainedModel, param_name: str, **kwargs: Any
    ) -> bool:
        return self.job is not None and self.job.wants(param_name)

    def get_quantize_ops(self) -> Any:
        return self.job

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> Any:
        assert self.job is not None
        self.job.finish(model)
        _forget(model)
        note_packed(model)
        return model

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        return True


def _forget(model: nn.Module) -> None:
    """Nothing of this class stays: what is packed is known by the layers."""
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        vars(model).pop(name, None)
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            vars(module.config).pop("_is_quantized", None)
            vars(module.config).pop("quantization_config", None)


def register() -> None:
    """Tell Transformers about both; a second call does nothing."""
    if METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(METHOD)(PackingConfig)
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantizer(METHOD)(PackingHfQuantizer)
