"""The built-in format: plain float layers, `nn.Linear` and the kinds in ``layouts.py``."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from quantlora.formats.around import refresh
from quantlora.formats.layouts import (
    conv1d,
    is_linear_kind,
    layout_of,
    layout_types,
    linear_from,
    with_weights,
)
from quantlora.formats.quantizer import FLOAT, Quantizer
from quantlora.formats.trial import computes
from quantlora.units import dtype_name

_PLAIN = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class FloatQuantizer(Quantizer):
    """Takes a layer only if its weight is a plain floating tensor of the layer's own shape.

    Many packed formats subclass `nn.Linear`; such a layer must never be taken for float. A subclass
    with a forward of its own is taken only if a trial shows that it is the plain product.
    """

    name: ClassVar[str] = FLOAT
    module: ClassVar[str] = "torch"
    is_float: ClassVar[bool] = True

    def layer_types(self) -> tuple[type[nn.Module], ...]:
        return (nn.Linear, *layout_types())

    def matches(self, layer: nn.Module) -> bool:
        return self._holds_floats(layer) and self._is_plain(layer)

    def is_other(self, layer: nn.Module) -> bool:
        """Whether ``layer`` would be one of ours but for its forward: a router, a clamp."""
        return self._holds_floats(layer) and not self._is_plain(layer)

    def _holds_floats(self, layer: nn.Module) -> bool:
        if not isinstance(layer, self.layer_types()):
            return False
        weight: Any = getattr(layer, "weight", None)  # packed subclasses may have none
        return (
            type(weight) in (nn.Parameter, Tensor)
            and weight.dtype in _PLAIN
            and tuple(weight.shape) == self._stored_shape(layer)
        )

    def _is_plain(self, layer: nn.Module) -> bool:
        known = not is_linear_kind(layer) or _forward_is_known(layer)
        return known or self._is_plain_product(layer)

    def _is_plain_product(self, layer: nn.Module) -> bool:
        if _weight(layer).is_meta:
            layer = _small_twin(layer)
        return computes(layer, self.dequantize(layer), self.bias(layer))

    def dequantize(self, layer: nn.Module) -> Tensor:
        return self.trainable(layer).detach()

    def trainable(self, layer: nn.Module) -> Tensor:
        if "weight" in vars(layer) or "bias" in vars(layer):
            refresh(layer)
        weight, layout = _weight(layer), layout_of(layer)
        return weight if layout is None else layout.matrix(weight)

    def quantize(
        self, linear: nn.Linear, like: nn.Module | None = None, **options: Any
    ) -> nn.Module:
        """A layer of ``like``'s kind and dtype that holds ``linear``'s weight and bias."""
        like = linear if like is None else like
        layout, dtype = layout_of(like), _weight(like).dtype
        matrix = linear.weight.detach()
        matrix = matrix if layout is None else layout.to_storage(matrix, like)
        weight = matrix.to(dtype, copy=True)
        bias = None if linear.bias is None else linear.bias.detach().to(dtype, copy=True)
        if layout is None:
            return linear_from(weight, bias).train(like.training)
        return with_weights(like, weight, bias)

    def shape(self, layer: nn.Module) -> tuple[int, int]:
        out_features, in_features = self.dequantize(layer).shape
        return int(out_features), int(in_features)

    def _stored_shape(self, layer: nn.Module) -> tuple[int, ...]:
        layout = layout_of(layer)
        if layout is not None:
            return layout.own_shape(layer)
        return cast("tuple[int, int]", (layer.out_features, layer.in_features))

    def describe(self, layer: nn.Module) -> dict[str, Any]:
        return {"dtype": dtype_name(_weight(layer).dtype)}


def _small_twin(layer: nn.Module) -> nn.Module:
    """A layer of the same class, with values: a model without weights can be planned too."""
    bias = None if getattr(layer, "bias", None) is None else torch.linspace(1, 2, 2)
    return with_weights(layer, torch.linspace(-1, 2, 6).view(2, 3), bias)


def _weight(layer: nn.Module) -> Tensor:
    return cast(Tensor, layer.weight)


def _forward_is_known(layer: nn.Module) -> bool:
    known = (nn.Linear.forward, *(cls.forward for cls in conv1d()))
    return type(layer).forward in known and type(layer).__call__ is nn.Module.__call__
