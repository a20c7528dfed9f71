"""What Transformers' ``from_pretrained`` knows of packing: a config and a quantizer of its own."""

from __future__ import annotations

from collections.abc import Mapping
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
from quantlora.errors import ConfigError
from quantlora.loading.pack_on_arrival import PackOnArrival
from quantlora.loading.packed_checkpoint import METHOD, VERSION
from quantlora.loading.unpack_checkpoint import PackedCheckpoint


class PackingConfig(QuantizationConfigMixin):
    """``quantization_config`` of a packed checkpoint, and of a model that is packed on its way.

    Args:
        modules: of a checkpoint, what is packed, by path.
        job: what packs a float checkpoint.
    """

    def __init__(
        self,
        modules: Mapping[str, Any] | None = None,
        job: PackOnArrival | None = None,
        version: int = VERSION,
        **kwargs: Any,
    ) -> None:
        if version > VERSION:
            raise ConfigError(
                f"the checkpoint is packed in version {version} of quantlora's layout, and this "
                f"quantlora knows {VERSION}: upgrade it."
            )
        self.quant_method = METHOD  # type: ignore[assignment]  # theirs is a closed enum
        self.modules, self.job = dict(modules or {}), job

    def to_dict(self) -> dict[str, Any]:
        return {"quant_method": METHOD, "version": VERSION, "modules": self.modules}


class PackingHfQuantizer(HfQuantizer):
    """Packs a float checkpoint tensor by tensor, or puts the layers of a packed one together."""

    is_trainable = True

    def __init__(self, quantization_config: PackingConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.work: PackOnArrival | PackedCheckpoint
        self.work = quantization_config.job or PackedCheckpoint(quantization_config.modules)

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        self.work.prepare(model)

    def update_weight_conversions(self, weight_conversions: Any, model: Any) -> Any:
        """A packed checkpoint has the names of the model's modules; experts come one by one."""
        if not isinstance(self.work, PackOnArrival):
            return []
        from quantlora.loading.expert_by_expert import ExpertByExpert

        return ExpertByExpert.of(weight_conversions)

    def param_needs_quantization(
        self, model: PreTrainedModel, param_name: str, **kwargs: Any
    ) -> bool:
        return isinstance(self.work, PackOnArrival) and self.work.wants(param_name)

    def get_quantize_ops(self) -> Any:
        return self.work

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> Any:
        self.work.finish(model)
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
