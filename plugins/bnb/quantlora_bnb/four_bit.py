"""``bitsandbytes_4bit``: `Linear4bit`, NF4 and FP4 (QLoRA, arXiv:2305.14314)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from quantlora import (
    BackendError,
    ExpertStack,
    InferenceCopy,
    PackedState,
    check_packable,
    checked_options,
    dense_copy,
    linear_from,
)
from quantlora.errors import warn
from quantlora_bnb.cpu_kernel import cpu_copy, has_kernel
from quantlora_bnb.cpu_layout import absmax, is_repacked, ordinary_state, state_tensors
from quantlora_bnb.experts import Bitsandbytes4bitExperts
from quantlora_bnb.library import library
from quantlora_bnb.packed_state import layer_from, layer_state
from quantlora_bnb.quantizer import BitsandbytesQuantizer, frozen
from quantlora_bnb.requires import REPACKED
from quantlora_bnb.settings import Settings4bit, dtype_name

#: Dtypes that bitsandbytes packs from and unpacks into.
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class Bitsandbytes4bit(BitsandbytesQuantizer):
    """4-bit codes in blocks along the flattened weight, one float32 or 8-bit scale for each."""

    name: ClassVar[str] = "bitsandbytes_4bit"
    also_called: ClassVar[tuple[str, ...]] = ("qlora", "bnb", "nf4", "fp4", "4bit", "int4")
    layer_name: ClassVar[str] = "Linear4bit"
    bits: ClassVar[tuple[int, ...]] = (4,)
    options: ClassVar[tuple[str, ...]] = tuple(field.name for field in fields(Settings4bit))
    preference: ClassVar[int] = 10

    def prepare(self, layer: nn.Module, path: str) -> None:
        """Undo the CPU layout, and keep upstream's forward from bringing it back.

        The second is for layers that keep that forward because they get no adapter, or lose it:
        a gradient must pass through them too.
        """
        if is_repacked(layer):
            warn(str(REPACKED), UserWarning)
        if ordinary_state(layer) is None:
            raise self._not_packed(path)
        layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]

    def undo_repacking(self, layer: nn.Module) -> None:
        ordinary_state(layer)

    def dequantize(self, layer: nn.Module) -> Tensor:
        return self.dequantize_to(layer, torch.float32)

    def dequantize_to(self, layer: nn.Module, dtype: torch.dtype) -> Tensor:
        state = ordinary_state(layer)
        if state is None:
            raise self._not_packed()
        target = dtype if dtype in _FLOATS else torch.float32
        weight: Tensor = torch.ops.bitsandbytes.dequantize_4bit.default(
            _codes(layer, state),
            absmax(state),
            state.blocksize,
            state.quant_type,
            _whole_blocks(state),
            target,
        )
        return weight.reshape(state.shape).to(dtype)

    def quantize(
        self, linear: nn.Linear, like: nn.Module | None = None, **options: Any
    ) -> nn.Module:
        """A `Linear4bit` on ``linear``'s device; see `Settings4bit` for the options."""
        check_packable(linear, "weight")
        given = Settings4bit(**checked_options(self, options))
        settings = given if like is None else Settings4bit.of(like)
        layer = self._empty(linear, settings)
        try:
            layer.weight = layer.weight.to(linear.weight.device)
        except (ValueError, RuntimeError) as error:
            raise BackendError(
                f"bitsandbytes cannot pack a {linear.out_features} x {linear.in_features} weight "
                f"with {settings}: {error}"
            ) from error
        if like is not None and layer.weight.quant_state is not None:
            layer.weight.quant_state.dtype = ordinary_state(like).dtype
        return layer.train(linear.training)  # type: ignore[no-any-return]

    @torch.no_grad()
    def quantize_experts(
        self, weight: Tensor, path: str, like: ExpertStack | None = None, **options: Any
    ) -> ExpertStack:
        """A stack with the codes and scales of a `Linear4bit` for each expert."""
        if isinstance(like, Bitsandbytes4bitExperts):
            options = asdict(like.settings)
        layers = [self.quantize(linear_from(matrix), **options) for matrix in weight]
        dtype = weight.dtype if like is None else like.dtype
        return Bitsandbytes4bitExperts(layers, dtype)

    def _empty(self, linear: nn.Linear, settings: Settings4bit) -> Any:
        """A layer whose weight is packed once it is moved to a device."""
        arguments = asdict(settings)
        blocksize = arguments.pop("blocksize")
        size = (linear.in_features, linear.out_features, linear.bias is not None)
        layer: Any = self._layer_type()(*size, **arguments, device="meta")
        weight = linear.weight.detach()
        weight = weight if weight.dtype in _FLOATS else weight.float()
        del arguments["compute_dtype"]
        layer.weight = library().nn.Params4bit(
            weight, requires_grad=False, blocksize=blocksize, module=layer, **arguments
        )
        layer.bias = frozen(linear.bias)
        return layer

    def checkpoint_config(
        self, layers: Mapping[str, nn.Module], linears: Mapping[str, nn.Module]
    ) -> dict[str, Any]:
        settings = Settings4bit.of(next(iter(layers.values())))
        return {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "bnb_4bit_quant_type": settings.quant_type,
            "bnb_4bit_use_double_quant": settings.compress_statistics,
            "bnb_4bit_compute_dtype": dtype_name(settings.compute_dtype or torch.float32),
            "bnb_4bit_quant_storage": dtype_name(settings.quant_storage),
            "llm_int8_skip_modules": self._skipped(layers, linears),
        }

    def packed_state(self, layer: nn.Module) -> PackedState:
        if ordinary_state(layer) is None:
            raise self._not_packed()
        return layer_state(layer)

    def from_packed_state(self, state: PackedState) -> nn.Module:
        layer = layer_from(state, self._layer_type())
        self.prepare(layer, "layer")
        return layer

    def experts_state(self, stack: ExpertStack) -> PackedState:
        assert isinstance(stack, Bitsandbytes4bitExperts)
        return stack.packed_state()

    def from_experts_state(self, state: PackedState) -> ExpertStack:
        return Bitsandbytes4bitExperts.from_state(state)

    def matmul(self, layer: nn.Module, x: Tensor) -> Tensor | None:
        """Upstream's fused kernel, on accelerators and in half precision.

        Declined on a CPU, whose kernel works on a copy (`inference_copy`), and in float32, where
        the result has to stay within 1e-5 of the dequantized product.
        """
        if x.device.type == "cpu" or x.dtype not in (torch.float16, torch.bfloat16):
            return None
        return fused_product(layer, x)

    def inference_copy(self, layer: nn.Module, dtype: torch.dtype) -> InferenceCopy | None:
        """In the layout of upstream's CPU kernel for bfloat16; else as floats."""
        state = ordinary_state(layer)
        if state is None:
            return None
        if dtype == torch.bfloat16 and has_kernel(state):
            return cpu_copy(_codes(layer, state), absmax(state), state)
        return dense_copy(partial(self.dequantize_to, layer, dtype), self.shape(layer), dtype)

    def weight_tensors(self, layer: nn.Module) -> Iterable[Tensor]:
        return state_tensors(layer)

    def compute_dtype(self, layer: nn.Module) -> torch.dtype | None:
        return layer.compute_dtype  # type: ignore[return-value]

    def packed_parameter(self, layer: nn.Module) -> Tensor | None:
        return layer.weight  # type: ignore[return-value]

    def group_size(self, layer: nn.Module) -> int | None:
        """The block size where each row begins with a new block."""
        blocksize = Settings4bit.of(layer).blocksize
        return blocksize if self.shape(layer)[1] % blocksize == 0 else None

    def describe(self, layer: nn.Module) -> dict[str, Any]:
        facts: dict[str, Any] = {"bits": 4, **asdict(Settings4bit.of(layer))}
        for name in ("quant_storage", "compute_dtype"):
            facts[name] = dtype_name(facts[name])
        return facts


def _whole_blocks(state: Any) -> Sequence[int]:
    """A shape for the kernel that starts each row with a new block, as the packed weight does not.

    Blocks run over the flattened weight. The CPU kernel of bitsandbytes 0.49 and 0.50 counts
    them by row, so that it takes wrong scales where a row is no whole number of blocks.
    """
    elements, blocksize = state.shape.numel(), state.blocksize
    if state.shape[-1] % blocksize == 0:
        return state.shape  # type: ignore[no-any-return]
    return (1, elements) if elements % blocksize else (elements // blocksize, blocksize)


def fused_product(layer: nn.Module, x: Tensor) -> Tensor | None:
    """``x · dequantize(Q)ᵀ`` by `bitsandbytes.matmul_4bit`; None where it would warn."""
    state = ordinary_state(layer)
    if x.shape[-1] % state.blocksize:
        return None
    codes = _codes(layer, state)
    product: Tensor = library().matmul_4bit(x, codes.t(), quant_state=state)
    return product


def _codes(layer: Any, state: Any) -> Tensor:
    """The packed weight ``(bytes, 1)``, two codes to the byte, whatever dtype it is stored in."""
    weight = layer.weight
    packed_as = getattr(weight, "quant_storage", weight.dtype)
    if weight.dtype != packed_as and weight.is_floating_point() and packed_as.is_floating_point:
        raise BackendError(
            f"the packed weight of a Linear4bit {tuple(state.shape)} was cast from {packed_as} to "
            f"{weight.dtype}, which destroys its bits (quant_storage holds codes, not numbers): "
            f"load the model again and move it with .to(device) only, without a dtype."
        )
    codes: Tensor = weight.data.view(-1, 1).view(torch.uint8).view(-1, 1)
    return codes
