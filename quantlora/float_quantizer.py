"""The built-in format: plain float layers, `nn.Linear` and Transformers' `Conv1D`."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear as NeverCalled

from quantlora.quantizer import Quantizer

_PLAIN = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class FloatQuantizer(Quantizer):
    """Takes a layer only if its weight is a plain floating tensor of the layer's own shape.

    Many packed formats subclass `nn.Linear`; such a layer must never be taken for float. A subclass
    with a forward of its own is taken only if a trial shows that it is the plain product. The
    output projection of `nn.MultiheadAttention` is not: that never calls it, so that LoRA on it
    would do nothing.
    """

    name: ClassVar[str] = "float"
    module: ClassVar[str] = "torch"

    def layer_types(self) -> tuple[type[nn.Module], ...]:
        return (nn.Linear, *_conv1d())

    def matches(self, layer: nn.Module) -> bool:
        if not isinstance(layer, self.layer_types()) or isinstance(layer, NeverCalled):
            return False
        weight: Any = getattr(layer, "weight", None)  # packed subclasses may have none
        return (
            type(weight) in (nn.Parameter, Tensor)
            and weight.dtype in _PLAIN
            and tuple(weight.shape) == self._stored_shape(layer)
            and (_forward_is_known(layer) or self._is_plain_product(layer))
        )

    @torch.no_grad()
    def _is_plain_product(self, layer: nn.Module) -> bool:
        """Whether ``layer`` gives ``x · Wᵀ + bias`` for one x."""
        weight, bias = self.dequantize(layer), self.bias(layer)
        if weight.is_meta:
            return False
        x = torch.linspace(-1, 1, weight.shape[1], dtype=weight.dtype, device=weight.device)[None]
        try:
            y = layer(x)
        except Exception:  # whatever it is, it is not a linear layer
            return False
        wanted = F.linear(x, weight, bias)
        return isinstance(y, Tensor) and y.shape == wanted.shape and _close(y, wanted)

    def dequantize(self, layer: nn.Module) -> Tensor:
        weight = _weight(layer).detach()
        return weight.t() if isinstance(layer, _conv1d()) else weight

    def quantize(
        self, linear: nn.Linear, like: nn.Module | None = None, **options: Any
    ) -> nn.Module:
        """A layer of ``like``'s class and dtype that holds ``linear``'s weight and bias."""
        like = linear if like is None else like
        weight = linear.weight.detach()
        weight = weight.t() if isinstance(like, _conv1d()) else weight
        new, dtype = _empty_like(like, linear), _weight(like).dtype
        new.weight = nn.Parameter(weight.to(dtype, copy=True), False)
        if linear.bias is not None:
            new.bias = nn.Parameter(linear.bias.detach().to(dtype, copy=True), False)
        return new.train(like.training)

    def shape(self, layer: nn.Module) -> tuple[int, int]:
        if isinstance(layer, _conv1d()):
            rows, columns = _weight(layer).shape
            return int(columns), int(rows)
        return super().shape(layer)

    def _stored_shape(self, layer: nn.Module) -> tuple[int, ...]:
        if isinstance(layer, _conv1d()):
            return cast("tuple[int, int]", (layer.nx, layer.nf))
        return self.shape(layer)

    def describe(self, layer: nn.Module) -> dict[str, Any]:
        return {"dtype": str(_weight(layer).dtype).removeprefix("torch.")}


def _weight(layer: nn.Module) -> Tensor:
    return cast(Tensor, layer.weight)


def _conv1d() -> tuple[type[nn.Module], ...]:
    """GPT-2's transposed linear layer; a class tuple, empty while Transformers is not imported."""
    import sys

    utils = sys.modules.get("transformers.pytorch_utils")
    return (utils.Conv1D,) if utils is not None else ()


def _forward_is_known(layer: nn.Module) -> bool:
    return type(layer).forward in (nn.Linear.forward, *(cls.forward for cls in _conv1d()))


def _close(y: Tensor, wanted: Tensor) -> bool:
    """Equal but for the order of summation."""
    error, scale = (y - wanted).abs().max(), wanted.abs().max()
    return y.dtype == wanted.dtype and bool(error <= 8 * torch.finfo(y.dtype).eps * scale)


def _empty_like(like: nn.Module, linear: nn.Linear) -> nn.Module:
    """A layer of ``like``'s class and ``linear``'s shape, on the meta device."""
    out_features, in_features = linear.out_features, linear.in_features
    with torch.device("meta"):
        if isinstance(like, _conv1d()):
            return type(like)(out_features, in_features)
        return nn.Linear(in_features, out_features, bias=linear.bias is not None)
