"""The quantizer ``mxfp4``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from quantlora import (
    BackendError,
    ExpertStack,
    InferenceCopy,
    PackedState,
    Quantizer,
    check_packable,
    dense_copy,
)
from quantlora_mxfp4.blocks import BLOCK, pack
from quantlora_mxfp4.layer import Mxfp4Linear
from quantlora_mxfp4.stack import Mxfp4Experts


class Mxfp4Quantizer(Quantizer):
    """Packs and reads `Mxfp4Linear` and `Mxfp4Experts`, in plain torch."""

    name: ClassVar[str] = "mxfp4"
    module: ClassVar[str] = "quantlora_mxfp4.layer"
    bits: ClassVar[tuple[int, ...]] = (4,)
    # Other 4-bit formats are nearer to normal weights.
    preference: ClassVar[int] = -10

    def layer_types(self) -> tuple[type[nn.Module], ...]:
        return (Mxfp4Linear,)

    def dequantize(self, layer: nn.Module) -> Tensor:
        return _linear(layer).dequantize()

    def dequantize_to(self, layer: nn.Module, dtype: torch.dtype) -> Tensor:
        return _linear(layer).dequantize(dtype)

    @torch.no_grad()
    def quantize(
        self, linear: nn.Linear, like: nn.Module | None = None, **options: Any
    ) -> nn.Module:
        """Pack ``linear``.

        Args:
            like: take the dtype of this layer, and its scales where they do as well.

        Raises:
            BackendError: a row is no multiple of 32, or a weight is not finite.
        """
        return _packed(linear, "weight", None if like is None else _linear(like))

    @torch.no_grad()
    def quantize_layers(
        self, model: nn.Module, layers: Mapping[str, nn.Linear], **options: Any
    ) -> dict[str, nn.Module]:
        """As `quantize` for each layer; errors name its path."""
        return {path: _packed(linear, path, None) for path, linear in layers.items()}

    @torch.no_grad()
    def quantize_experts(
        self, weight: Tensor, path: str, like: ExpertStack | None = None, **options: Any
    ) -> ExpertStack:
        _check_width(weight.shape[-1], path)
        old = like if isinstance(like, Mxfp4Experts) else None
        blocks, scales = pack(weight, None if old is None else old.scales)
        if old is None:
            return Mxfp4Experts(blocks, scales, weight.dtype)
        return Mxfp4Experts(blocks, scales, old.dtype, old.in_checkpoints)

    def inference_copy(self, layer: nn.Module, dtype: torch.dtype) -> InferenceCopy:
        return dense_copy(partial(_linear(layer).dequantize, dtype), self.shape(layer), dtype)

    def group_size(self, layer: nn.Module) -> int:
        return BLOCK

    def packed_state(self, layer: nn.Module) -> PackedState:
        own, dtype = _linear(layer), str(_linear(layer).dtype).removeprefix("torch.")
        sizes = {"in_features": own.in_features, "out_features": own.out_features}
        return PackedState(
            {**sizes, "bias": own.bias is not None, "dtype": dtype}, own.state_dict()
        )

    def from_packed_state(self, state: PackedState) -> nn.Module:
        own: dict[str, Any] = dict(state.settings)
        own["dtype"] = getattr(torch, own["dtype"])
        layer = Mxfp4Linear(**own, device="meta")
        layer.load_state_dict(dict(state.tensors), assign=True)
        return layer.requires_grad_(False)

    def experts_state(self, stack: ExpertStack) -> PackedState:
        assert isinstance(stack, Mxfp4Experts)
        return stack.packed_state()

    def from_experts_state(self, state: PackedState) -> ExpertStack:
        blocks, scales = state.tensors["blocks"], state.tensors["scales"]
        return Mxfp4Experts(blocks, scales, getattr(torch, state.settings["dtype"]))

    def describe(self, layer: nn.Module) -> dict[str, Any]:
        return {"bits": 4, "block_size": BLOCK}


def _linear(layer: nn.Module) -> Mxfp4Linear:
    assert isinstance(layer, Mxfp4Linear)
    return layer


def _packed(linear: nn.Linear, where: str, like: Mxfp4Linear | None) -> Mxfp4Linear:
    check_packable(linear, where)
    _check_width(linear.in_features, where)
    weight = linear.weight.detach()
    dtype = weight.dtype if like is None else like.dtype
    sizes = linear.in_features, linear.out_features
    layer = Mxfp4Linear(*sizes, False, device="meta", dtype=dtype)
    layer.blocks, layer.scales = pack(weight, None if like is None else like.scales)
    if linear.bias is not None:
        layer.bias = nn.Parameter(linear.bias.detach().to(dtype, copy=True), False)
    return layer.train(linear.training)


def _check_width(width: int, where: str) -> None:
    if width % BLOCK:
        raise BackendError(
            f"{where}: {width} inputs are no multiple of {BLOCK}, the block of MXFP4. Leave it out "
            f"(exclude_modules), or take another backend."
        )
