"""One try of an operation: models with adapters, inputs for them, and the comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quantlora.config.lora_config import LoraConfig
from quantlora.discovery.registration import registry
from quantlora.formats.quantizer import Quantizer
from quantlora.operations import reference
from quantlora.operations.results import hold_close
from quantlora.operations.subject import OneLayerModel, Subject
from quantlora.wrapped_model import wrap


@dataclass(frozen=True)
class Trial:
    """A subject, and the dtype of its layers' float parts and of inputs."""

    subject: Subject
    dtype: torch.dtype

    @property
    def format(self) -> Quantizer:
        return registry().quantizer(self.subject.quantizer)

    @property
    def variant(self) -> str:
        """That of an adapter which is not the first one."""
        fields = {"target_modules": ["proj"], **self.subject.fields("second")}
        fields.pop("backend", None)
        return LoraConfig.from_fields(fields).variant

    def layer(self, bias: bool | None = None) -> nn.Module:
        return self.subject.layer(bias=bias, dtype=self.dtype)

    def wrapped(self, layer: nn.Module | None = None, **fields: Any) -> OneLayerModel:
        """A model with ``layer`` at ``proj`` and one adapter whose A and B are random."""
        layer = self.layer() if layer is None else layer
        fields = {
            "r": min(4, *registry().match("proj", layer).shape(layer)),
            "lora_alpha": 3,
            "target_modules": ["proj"],
            "init_lora_weights": False,
            **self.subject.fields("default"),
            **fields,
        }
        return wrap(OneLayerModel(layer), **fields)

    def input(self, layer: nn.Module, *batch: int) -> Tensor:
        """Normal values ``(*batch, in_features)`` on the layer's device."""
        quantizer = registry().match("proj", layer)
        size = (*batch, quantizer.shape(layer)[1])
        return torch.randn(size, device=quantizer.device(layer)).to(self.dtype)

    def one_adapter(self, **fields: Any) -> tuple[OneLayerModel, Tensor]:
        layer = self.layer()
        return self.wrapped(layer, **fields), self.input(layer, 6)

    def two_adapters(self, **fields: Any) -> tuple[OneLayerModel, Tensor]:
        """``default`` and ``second``, of different ranks and scales; ``second`` is active."""
        model, x = self.one_adapter()
        given = {
            "r": 1,
            "lora_alpha": 2,
            "target_modules": ["proj"],
            "init_lora_weights": False,
            **self.subject.fields("second"),
            **fields,
        }
        return wrap(model, adapter_name="second", **given), x

    def another_variant(self) -> dict[str, Any]:
        """Fields for an adapter of another variant than the first, where that is plain LoRA."""
        return {"use_dora": True} if self.variant == "lora" else {}

    def tolerance(self, layer: nn.Module, *dtypes: torch.dtype) -> float:
        """That of the coarsest dtype a product of ``layer`` goes through."""
        compute_dtype = registry().match("proj", layer).compute_dtype(layer)
        passed = dtypes if compute_dtype is None else (*dtypes, compute_dtype)
        return max(self.subject.tolerances[dtype] for dtype in passed)

    def check(self, model: OneLayerModel, x: Tensor, *names: str) -> None:
        """The output is that of the adapters ``names``."""
        error = reference.relative(model(x), reference.output(model.lora, x, names))
        limit = self.tolerance(model.lora.plain_base[0], x.dtype)
        hold_close(error, limit, "the output differs from the float64 reference")

    def check_gradients(self, model: OneLayerModel, weight: Tensor, x: Tensor) -> None:
        """Output and gradients are those of the active adapters over the base ``weight``."""
        grad = torch.randn_like(model(x))
        wanted = reference.training_step(model.lora, weight, x, grad)
        found = reference.measured_step(model, model.lora, x, grad)
        limit = self.tolerance(model.lora.plain_base[0], x.dtype)
        for name, error in reference.errors(found, wanted).items():
            what = "output" if name == "output" else f"gradient of {name}"
            hold_close(error, limit, f"the {what} differs from the float64 reference")
