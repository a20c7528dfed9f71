"""The quantizer ``normalfloat``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from quantlora import (
    AffineWeight,
    BackendError,
    ExpertStack,
    InferenceCopy,
    PackedState,
    Quantizer,
    by_pattern,
    check_packable,
    dense_copy,
    grid_copy,
    linear_from,
    unmatched_patterns,
)
from quantlora_normalfloat.affine import from_affine, to_affine
from quantlora_normalfloat.blocks import encode
from quantlora_normalfloat.experts import NormalFloatExperts
from quantlora_normalfloat.layer import NormalFloatLinear, settings
from quantlora_normalfloat.packed_state import layer_from, layer_state
from quantlora_normalfloat.packing import pack
from quantlora_normalfloat.requires import SCIPY
from quantlora_normalfloat.tables import BITS, QUANT_TYPES, level_table


class NormalFloatQuantizer(Quantizer):
    """Packs and reads `NormalFloatLinear`: NF2, NF3, NF4, NF8 and uniform, in plain torch."""

    name: ClassVar[str] = "normalfloat"
    module: ClassVar[str] = "quantlora_normalfloat.layer"
    requires = (SCIPY,)
    bits: ClassVar[tuple[int, ...]] = BITS
    options: ClassVar[tuple[str, ...]] = ("quant_type", "block_size", "double_quant", "dtype")

    def layer_types(self) -> tuple[type[nn.Module], ...]:
        return (NormalFloatLinear,)

    def dequantize(self, layer: nn.Module) -> Tensor:
        return _own(layer).dequantize()

    def dequantize_to(self, layer: nn.Module, dtype: torch.dtype) -> Tensor:
        return _own(layer).dequantize(dtype)

    @torch.no_grad()
    def quantize(
        self, linear: nn.Linear, like: nn.Module | None = None, **options: Any
    ) -> nn.Module:
        """Pack ``linear``.

        Args:
            like: take the settings of this layer, its dtype too.
            options: ``bits`` 2, 3, 4 (default) or 8, ``quant_type`` "nf" or "uniform",
                ``block_size``, ``double_quant``; see `NormalFloatLinear`.

        Raises:
            BackendError: other bits, or a weight that is not finite. MissingLibraryError: no scipy.
        """
        if like is not None:
            options = {**settings(_own(like)), "dtype": _own(like).dtype}
        return _pack(linear, "weight", **options)

    @torch.no_grad()
    def quantize_layers(
        self,
        model: nn.Module,
        layers: Mapping[str, nn.Linear],
        *,
        bits: int = 4,
        bits_pattern: Mapping[str, int] | None = None,
        **options: Any,
    ) -> dict[str, nn.Module]:
        """As `quantize` for each layer; mixed precision by ``bits_pattern``.

        Args:
            bits_pattern: bits for the layers whose path ends in a match of the pattern; the first
                that matches counts: ``{r"layers\\.[0-3]\\..*": 4}`` with ``bits=2``.

        Raises:
            BackendError: as `quantize`, naming the path; a pattern that matches no layer.
            ConfigError, TargetError: a pattern that `quantlora.by_pattern` refuses.
        """
        patterns = bits_pattern or {}
        for pattern in unmatched_patterns(patterns, layers):
            raise BackendError(f"bits_pattern {pattern!r} matches none of the layers to pack.")
        return {
            path: _pack(linear, path, bits=by_pattern(path, patterns, bits), **options)
            for path, linear in layers.items()
        }

    @torch.no_grad()
    def quantize_experts(
        self,
        weight: Tensor,
        path: str,
        like: ExpertStack | None = None,
        *,
        bits: int = 4,
        bits_pattern: Mapping[str, int] | None = None,
        **options: Any,
    ) -> ExpertStack:
        """As `quantize` for each expert; ``bits_pattern`` is matched with ``path``."""
        if like is not None:
            assert isinstance(like, NormalFloatExperts)
            bits, options = like.settings["bits"], {**like.settings, "dtype": like.dtype}
            del options["bits"]
        bits = by_pattern(path, bits_pattern or {}, bits)
        return NormalFloatExperts(
            [_pack(linear_from(matrix, None), path, bits=bits, **options) for matrix in weight]
        )

    def inference_copy(self, layer: nn.Module, dtype: torch.dtype) -> InferenceCopy:
        """Codes for torch's int4 kernel where it takes them, else floats."""
        own, dense = _own(layer), partial(_own(layer).dequantize, dtype)
        if own.zeros is None:
            return dense_copy(dense, self.shape(layer), dtype)
        affine, neighbours = partial(to_affine, own), own.group_index() is None
        grid = own.bits, own.block_size, neighbours
        return grid_copy(affine, dense, self.shape(layer), dtype, *grid)

    def group_size(self, layer: nn.Module) -> int | None:
        return _own(layer).block_size

    def group_index(self, layer: nn.Module) -> Tensor | None:
        return _own(layer).group_index()

    def affine(self, layer: nn.Module) -> AffineWeight | None:
        return to_affine(_own(layer))

    def from_affine(self, weight: AffineWeight, bias: Tensor | None) -> nn.Module:
        """A uniform layer with these codes, scales and zero-points, in float32."""
        return from_affine(weight, bias)

    def checkpoint_config(
        self, layers: Mapping[str, nn.Module], linears: Mapping[str, nn.Module]
    ) -> dict[str, Any]:
        from quantlora_normalfloat.transformers_format import NormalFloatConfig, register

        register()  # whoever writes such a checkpoint can read it
        return NormalFloatConfig.of(layers).to_dict()

    def packed_state(self, layer: nn.Module) -> PackedState:
        return layer_state(_own(layer))

    def from_packed_state(self, state: PackedState) -> nn.Module:
        return layer_from(state)

    def experts_state(self, stack: ExpertStack) -> PackedState:
        assert isinstance(stack, NormalFloatExperts)
        return stack.packed_state()

    def from_experts_state(self, state: PackedState) -> ExpertStack:
        return NormalFloatExperts.from_state(state)

    def describe(self, layer: nn.Module) -> dict[str, Any]:
        return settings(_own(layer))


def _own(layer: nn.Module) -> NormalFloatLinear:
    assert isinstance(layer, NormalFloatLinear)
    return layer


def _pack(linear: nn.Linear, where: str, bits: int = 4, **options: Any) -> NormalFloatLinear:
    weight = linear.weight.detach()
    _check_bits(where, bits)
    _check_settings(where, **options)
    check_packable(linear, where)
    options = {"dtype": weight.dtype, **options}
    packed = NormalFloatLinear(
        linear.in_features, linear.out_features, bias=False, bits=bits, device="meta", **options
    )
    levels = level_table(bits, packed.quant_type).to(weight.device)
    uniform = packed.quant_type == "uniform"
    encoded = encode(weight, levels, packed.block_size, zeros=uniform)
    packed.scales.store(encoded.scales)
    if uniform and packed.double_quant:  # the grid there is now decides codes and zero-points
        encoded = encode(weight, levels, packed.block_size, True, packed.scales())
    packed.packed, packed.levels, packed.zeros = pack(encoded.codes, bits), levels, encoded.zeros
    if linear.bias is not None:
        packed.bias = nn.Parameter(linear.bias.detach().to(packed.dtype, copy=True), False)
    return packed.train(linear.training)


def _check_bits(where: str, bits: int) -> None:
    if bits not in BITS:
        raise BackendError(
            f"{where}: Only support {', '.join(map(str, BITS))} bits quantization, got {bits!r}."
        )


def _check_settings(
    where: str, quant_type: str = "nf", block_size: int = 64, **others: object
) -> None:
    if quant_type not in QUANT_TYPES:
        kinds = ", ".join(QUANT_TYPES)
        raise BackendError(f"{where}: quant_type must be one of {kinds}, got {quant_type!r}.")
    if type(block_size) is not int or block_size < 1:
        raise BackendError(
            f"{where}: block_size must be a whole number above 0, got {block_size!r}."
        )
