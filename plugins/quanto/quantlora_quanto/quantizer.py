"""The quantizer ``quanto``: layers of optimum-quanto, their weights alone quantized."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from quantlora import (
    AffineWeight,
    BackendError,
    InferenceCopy,
    PackedState,
    Quantizer,
    dense_copy,
)
from quantlora_quanto.copies import copyable, release
from quantlora_quanto.requires import QUANTO
from quantlora_quanto.weights import (
    KINDS,
    default_group,
    dequantize,
    from_layer_state,
    group_size,
    kind_of,
    layer_state,
    pack,
    to_affine,
)


class QuantoQuantizer(Quantizer):
    """int2, int4, int8 and float8 weights; layers that quantize their inputs are refused."""

    name: ClassVar[str] = "quanto"
    also_called: ClassVar[tuple[str, ...]] = ("optimum-quanto",)
    module: ClassVar[str] = "optimum.quanto"
    requires = (QUANTO,)
    bits: ClassVar[tuple[int, ...]] = (2, 4, 8)
    preference: ClassVar[int] = -20

    def layer_types(self) -> tuple[type[nn.Module], ...]:
        from optimum.quanto import QLinear

        return (QLinear,)

    def dequantize(self, layer: Any) -> Tensor:
        return dequantize(layer.weight)

    def inference_copy(self, layer: nn.Module, dtype: torch.dtype) -> InferenceCopy:
        return dense_copy(partial(self.dequantize_to, layer, dtype), self.shape(layer), dtype)

    def check_model(self, model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
        for path, layer in layers.items():
            _check(layer, path)

    def prepare(self, layer: nn.Module, path: str) -> None:
        _check(layer, path)
        copyable(layer, lent=True)

    def release(self, layer: nn.Module) -> None:
        release(layer)

    @torch.no_grad()
    def quantize(
        self,
        linear: nn.Linear,
        like: nn.Module | None = None,
        *,
        bits: int = 8,
        weights: str | None = None,
        **options: Any,
    ) -> nn.Module:
        """Pack with the library's scales.

        Args:
            like: a layer whose type, groups and dtype are taken; a group keeps its scale where that
                errs less than a new one.
            bits: 2, 4 or 8, as integers.
            weights: "int2", "int4", "int8" or "float8", in place of ``bits``.
        """
        from optimum.quanto import QLinear

        kept: Any = None if like is None else like.weight
        kind = weights or f"int{bits}" if kept is None else kind_of(kept)
        if kind not in KINDS:
            raise BackendError(f"quanto: weights must be one of {', '.join(KINDS)}, got {kind!r}.")
        dtype = linear.weight.dtype if kept is None else kept.dtype
        size = default_group(linear.in_features, kind) if kept is None else group_size(kept)
        packed = pack(linear.weight.detach().to(dtype), kind, size, kept)
        layer: Any = QLinear.qcreate(linear, packed.qtype, device="meta")
        layer.weight = nn.Parameter(packed, requires_grad=False)
        for name in ("input_scale", "output_scale"):
            setattr(layer, name, torch.ones((), dtype=dtype, device=linear.weight.device))
        if linear.bias is not None:
            layer.bias = nn.Parameter(linear.bias.detach().to(dtype, copy=True), False)
        return copyable(layer).train(linear.training)  # type: ignore[no-any-return]

    def affine(self, layer: Any) -> AffineWeight | None:
        return to_affine(layer.weight) if layer.frozen else None

    def group_size(self, layer: Any) -> int | None:
        """A row where it is no group; None for 8-bit floats, which are on no grid."""
        if not layer.frozen or layer.weight.qtype.is_floating_point:
            return None
        return group_size(layer.weight) or int(layer.in_features)

    def packed_state(self, layer: nn.Module) -> PackedState:
        return layer_state(layer)

    def from_packed_state(self, state: PackedState) -> nn.Module:
        layer: nn.Module = copyable(from_layer_state(state))
        return layer

    def packed_parameter(self, layer: nn.Module) -> Tensor | None:
        return layer.weight  # type: ignore[return-value]

    def not_shardable(self, layer: nn.Module) -> str:
        return "a shard of a tensor of quanto's class has not been tried."

    def describe(self, layer: Any) -> dict[str, Any]:
        if not layer.frozen:
            return {}
        kind, weight = kind_of(layer.weight), layer.weight
        return {"kind": kind, "bits": weight.qtype.bits, "group_size": group_size(weight)}


def _check(layer: Any, path: str) -> None:
    """Raise `BackendError` where the layer is none that can be trained on."""
    problem = ""
    if layer.weight_qtype is None:
        problem = "its weight is not quantized; load the model without quanto"
    elif not layer.frozen:
        problem = "its weight is still float: call optimum.quanto.freeze(model) first"
    elif layer.activation_qtype is not None:
        problem = (
            "its inputs are quantized too, which is not trained through; quantize without "
            "activations="
        )
    elif not dequantize(layer.weight).isfinite().all():
        problem = "its weight is not finite: a row of zeros in float8, or a damaged file"
    if problem:
        raise BackendError(f"{path}: this layer of quanto's cannot be used: {problem}.")
