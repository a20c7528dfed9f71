"""The quantizer ``compressed_tensors``, for every scheme that the library's compressors read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from quantlora import AffineWeight, BackendError, InferenceCopy, Quantizer, grid_copy
from quantlora_compressed_tensors.hook import HOOKED, give_back, keep_packed
from quantlora_compressed_tensors.layer import check, decompress, is_compressed, state
from quantlora_compressed_tensors.packing import new_scheme, pack
from quantlora_compressed_tensors.requires import LIBRARY


class CompressedTensorsQuantizer(Quantizer):
    """Layers stay packed in training; activations are never quantized."""

    name: ClassVar[str] = "compressed_tensors"
    also_called: ClassVar[tuple[str, ...]] = ("compressed-tensors", "llm-compressor")
    module: ClassVar[str] = "compressed_tensors"
    requires = (LIBRARY,)
    bits: ClassVar[tuple[int, ...]] = (2, 3, 4, 8)
    # Rounds to nearest: never the choice where the user leaves it to us.
    preference: ClassVar[int] = -20

    def layer_types(self) -> tuple[type[nn.Module], ...]:
        """None to name: a layer is known by its scheme, see `matches`."""
        return ()

    def matches(self, layer: nn.Module) -> bool:
        return is_compressed(layer)

    def dequantize(self, layer: nn.Module) -> Tensor:
        return decompress(layer)["weight"].float()

    def inference_copy(self, layer: Any, dtype: torch.dtype) -> InferenceCopy:
        """Codes for torch's int4 kernel where it takes them, else floats."""
        dense, shape = partial(self.dequantize_to, layer, dtype), self.shape(layer)
        args = layer.quantization_scheme.weights
        on_grid = args.type == "int" and args.strategy == "group"
        size = args.group_size if on_grid else None
        return grid_copy(partial(self.affine, layer), dense, shape, dtype, args.num_bits, size)

    def prepare(self, layer: nn.Module, path: str) -> None:
        check(layer, path)

    def prepare_model(self, model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
        keep_packed(model, layers)

    def release_model(self, model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
        give_back(model)

    def not_runnable(self, layer: nn.Module) -> str:
        if vars(layer).get(HOOKED):
            return ""
        return (
            "its model decompresses it at the first forward, and this one has no such hook. Load "
            'the model with Transformers, or merge with mode="dequantize".'
        )

    @torch.no_grad()
    def quantize(
        self,
        linear: nn.Linear,
        like: nn.Module | None = None,
        *,
        bits: int = 4,
        scheme: str | None = None,
        group_size: int | None = None,
        **options: Any,
    ) -> nn.Module:
        """Round to nearest by the library's compressor.

        Args:
            like: a layer whose scheme is taken.
            bits: integers of so many bits, where no ``scheme`` is given.
            scheme: the library's name: "W4A16", "W8A8", "FP8_DYNAMIC", "NVFP4A16", "MXFP4", ...
            group_size: inputs that share a scale, of integers; None: what divides of 128, 64, 32
                and 16, else all.
        """
        if like is not None:
            return pack(linear, like.quantization_scheme, like)
        name = scheme or f"W{bits}A16"
        return pack(linear, new_scheme(name, group_size, linear.in_features), None)

    def group_size(self, layer: Any) -> int | None:
        args = layer.quantization_scheme.weights
        whole_rows = args.type == "int" and args.strategy == "channel"
        return layer.in_features if whole_rows else args.group_size or None

    def affine(self, layer: Any) -> AffineWeight | None:
        args = layer.quantization_scheme.weights
        if args.type != "int" or args.strategy not in ("group", "channel"):
            return None
        parts, half = decompress(layer), 2 ** (args.num_bits - 1)
        scales = parts["weight_scale"].float()
        zeros = parts.get("weight_zero_point", torch.zeros_like(scales)).to(scales)
        size = args.group_size or layer.in_features
        steps = parts["weight"].float() / scales.repeat_interleave(size, 1)
        codes = steps.round() + zeros.repeat_interleave(size, 1) + half
        bits = args.num_bits if args.num_bits in self.bits else 8
        return AffineWeight(codes.to(torch.uint8), scales, zeros + half, bits, size)

    def checkpoint_config(
        self, layers: Mapping[str, nn.Module], linears: Mapping[str, nn.Module]
    ) -> dict[str, Any]:
        from compressed_tensors.quantization import QuantizationConfig

        schemes: list[Any] = [layer.quantization_scheme for layer in layers.values()]
        if any(scheme.weights != schemes[0].weights for scheme in schemes):
            raise BackendError("the layers are packed by several schemes: give one group_size.")
        config = QuantizationConfig(
            config_groups={"group_0": schemes[0]},
            ignore=[path for path in linears if path not in layers],
            format=self.describe(next(iter(layers.values())))["format"],
            quantization_status="compressed",
        )
        return {"quant_method": "compressed-tensors", **config.model_dump(mode="json")}

    def device(self, layer: nn.Module) -> torch.device:
        return state(layer)["weight_scale"].device

    def describe(self, layer: Any) -> dict[str, Any]:
        from compressed_tensors.compressors.format import infer_module_format

        scheme, args = layer.quantization_scheme, layer.quantization_scheme.weights
        found = scheme.format or infer_module_format(nn.Linear, scheme)
        return {
            "bits": args.num_bits,
            "format": getattr(found, "value", found),
            "strategy": str(getattr(args.strategy, "value", args.strategy)),
            "group_size": args.group_size or None,
        }
