"""``bitsandbytes_8bit``: `Linear8bitLt`, LLM.int8's weights (arXiv:2208.07339).

The product here is taken with the dequantized weight. Upstream's own forward also quantizes the
input to 8 bits; `quantlora_bnb.llm_int8` switches that on for inference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantlora import check_packable, checked_options
from quantlora_bnb import int8_terms, llm_int8
from quantlora_bnb.library import library
from quantlora_bnb.quantizer import BitsandbytesQuantizer, frozen
from quantlora_bnb.rows import packed_rows
from quantlora_bnb.settings import Settings8bit

#: Rows up to which torch's int8 kernel beats converting the weight (2 cores, AVX512-BF16).
FEW_ROWS = 16


class Bitsandbytes8bit(BitsandbytesQuantizer):
    """8-bit codes and one float32 scale for each row: ``W = CB · SCB / 127``."""

    name: ClassVar[str] = "bitsandbytes_8bit"
    also_called: ClassVar[tuple[str, ...]] = ("llm.int8", "int8", "8bit")
    layer_name: ClassVar[str] = "Linear8bitLt"
    bits: ClassVar[tuple[int, ...]] = (8,)
    options: ClassVar[tuple[str, ...]] = tuple(field.name for field in fields(Settings8bit))

    def prepare(self, layer: nn.Module, path: str) -> None:
        self._codes_and_absmax(layer, path)
        llm_int8.say_once()

    def dequantize(self, layer: nn.Module) -> Tensor:
        return self.dequantize_to(layer, torch.float32)

    def dequantize_to(self, layer: nn.Module, dtype: torch.dtype) -> Tensor:
        codes, scale = self._parts(layer)
        return codes.to(dtype).mul_(scale[:, None])

    def quantize(
        self, linear: nn.Linear, like: nn.Module | None = None, **options: Any
    ) -> nn.Module:
        """A `Linear8bitLt` on ``linear``'s device; see `Settings8bit` for the options."""
        check_packable(linear, "weight")
        bnb = library()
        given = Settings8bit(**checked_options(self, options))
        settings = given if like is None else Settings8bit.of(like)
        size = (linear.in_features, linear.out_features, linear.bias is not None)
        layer: Any = self._layer_type()(
            *size, has_fp16_weights=False, **asdict(settings), device="meta"
        )
        codes, scale = packed_rows(linear.weight.detach())
        layer.weight = bnb.nn.Int8Params(codes, False, CB=codes, SCB=scale)
        layer.bias = frozen(linear.bias)
        if like is not None:
            llm_int8.copy_switch(like, layer)
        return layer.train(linear.training)  # type: ignore[no-any-return]

    def matmul(self, layer: nn.Module, x: Tensor) -> Tensor | None:
        """Multiply with the codes, scale the result: no float weight has to be scaled.

        Exact: 8-bit codes are exact in bfloat16 and float32 (`int8_terms` says what a few rows of
        bfloat16 lose). Declined in float16, where the unscaled product can overflow.
        """
        if llm_int8.is_on(layer):
            codes, absmax = self._codes_and_absmax(layer)
            return llm_int8.product(x, codes, absmax, Settings8bit.of(layer).threshold)
        if x.dtype not in (torch.float32, torch.bfloat16):
            return None
        codes, scale = self._parts(layer)
        if _is_decoding_on_cpu(x):
            flat = x.reshape(-1, x.shape[-1]).contiguous()
            if int8_terms.takes(flat):
                y = int8_terms.product(flat, codes, scale)
            else:
                y = torch._weight_int8pack_mm(flat, codes, scale.to(x.dtype))
            return y.reshape(*x.shape[:-1], codes.shape[0])
        return F.linear(x, codes.to(x.dtype)).mul_(scale)

    def checkpoint_config(
        self, layers: Mapping[str, nn.Module], linears: Mapping[str, nn.Module]
    ) -> dict[str, Any]:
        return {
            "quant_method": "bitsandbytes",
            "load_in_8bit": True,
            "llm_int8_skip_modules": self._skipped(layers, linears),
        }

    def packed_parameter(self, layer: nn.Module) -> Tensor | None:
        return layer.weight  # type: ignore[return-value]

    def not_shardable(self, layer: nn.Module) -> str:
        return "bitsandbytes keeps the scales (SCB) on the weight itself, and a shard has none."

    def describe(self, layer: nn.Module) -> dict[str, Any]:
        return {"bits": 8, **asdict(Settings8bit.of(layer))}

    def _parts(self, layer: nn.Module) -> tuple[Tensor, Tensor]:
        """Codes int8 ``(out, in)`` and float32 scale ``(out,)`` with ``W = codes · scale``."""
        codes, absmax = self._codes_and_absmax(layer)
        return codes, absmax * (1.0 / 127.0)

    def _codes_and_absmax(self, layer: Any, path: str = "") -> tuple[Tensor, Tensor]:
        """CB and SCB, from the weight or, after upstream's first forward, from ``layer.state``.

        That state is not moved along when the model is, so the weight is looked at first.
        """
        weight, state = layer.weight, layer.state
        codes = weight.data if weight.dtype == torch.int8 else state.CB
        absmax = getattr(weight, "SCB", None)
        absmax = state.SCB if absmax is None else absmax
        if codes is None or absmax is None:
            raise self._not_packed(path)
        return codes, absmax.to(codes.device, torch.float32)


def _is_decoding_on_cpu(x: Tensor) -> bool:
    """Whether torch's kernel for few rows takes ``x``.

    It reads 16 codes at a time without looking where a row ends: other widths give numbers from
    beyond the weight, or end the process.
    """
    few = 0 < x.numel() <= FEW_ROWS * x.shape[-1] and x.shape[-1] % 16 == 0
    return few and x.device.type == "cpu" and x.dtype == torch.bfloat16
