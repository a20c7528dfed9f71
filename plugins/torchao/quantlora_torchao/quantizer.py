"""The quantizer ``torchao``: weight-only tensors, int8, intx and float8; NF4 is read."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from quantlora import AffineWeight, BackendError, InferenceCopy, Quantizer, dense_copy
from quantlora_torchao.requires import TORCHAO
from quantlora_torchao.weights import KINDS, Settings, dequantize, is_torchao, to_affine


class TorchaoQuantizer(Quantizer):
    """Any of the library's tensors is read; those that quantize weights alone are packed."""

    name: ClassVar[str] = "torchao"
    module: ClassVar[str] = "torchao"
    requires = (TORCHAO,)
    bits: ClassVar[tuple[int, ...]] = (2, 3, 4, 8)
    preference: ClassVar[int] = -15

    def layer_types(self) -> tuple[type[nn.Module], ...]:
        """None to name: the format is in the tensor, see `matches`."""
        return ()

    def matches(self, layer: nn.Module) -> bool:
        return is_torchao(layer)

    def dequantize(self, layer: nn.Module) -> Tensor:
        return dequantize(layer.weight)

    def inference_copy(self, layer: nn.Module, dtype: torch.dtype) -> InferenceCopy:
        return dense_copy(partial(self.dequantize_to, layer, dtype), self.shape(layer), dtype)

    @torch.no_grad()
    def quantize(
        self,
        linear: nn.Linear,
        like: nn.Module | None = None,
        *,
        bits: int = 8,
        kind: str | None = None,
        group_size: int | None = None,
        **options: Any,
    ) -> nn.Module:
        """Pack by the library.

        Args:
            like: a layer whose settings are taken.
            bits: 2, 3 and 4 are "intx", kept as int8 in memory; 8 is "int8".
            kind: "int8", "intx" or "float8", in place of what ``bits`` says.
            group_size: neighbours along a row that share a scale; None: the whole row.
        """
        if like is not None:
            settings = _settings_of(like)
        else:
            kind = kind or ("int8" if bits == 8 else "intx")
            settings = Settings(kind, bits, group_size)
        if kind is not None and kind not in KINDS.values():
            raise BackendError(f"torchao: kind must be one of {', '.join(KINDS.values())}.")
        size = (linear.in_features, linear.out_features, linear.bias is not None)
        layer = nn.Linear(*size, device="meta")
        layer.weight = nn.Parameter(linear.weight.detach().clone(), requires_grad=False)
        if linear.bias is not None:
            layer.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=False)
        settings.pack(layer)
        return layer.requires_grad_(False).train(linear.training)

    def group_size(self, layer: nn.Module) -> int | None:
        affine = to_affine(layer.weight)
        return None if affine is None else affine.group_size

    def affine(self, layer: nn.Module) -> AffineWeight | None:
        return to_affine(layer.weight)

    def not_shardable(self, layer: nn.Module) -> str:
        return "a shard of a tensor of torchao's class has not been tried."

    def packed_parameter(self, layer: nn.Module) -> Tensor | None:
        return layer.weight  # type: ignore[return-value]

    def describe(self, layer: nn.Module) -> dict[str, Any]:
        return asdict(Settings.of(layer.weight))


def _settings_of(like: Any) -> Settings:
    if getattr(like.weight, "act_quant_kwargs", None) is not None:
        raise BackendError(
            "torchao: this weight quantizes its inputs too, which packing here would lose; "
            'mode="dequantize" merges into a float one.'
        )
    return Settings.of(like.weight)
