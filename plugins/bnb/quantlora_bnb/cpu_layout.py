"""Undoing the CPU layout that bitsandbytes gives a 4-bit weight behind its user's back.

On a CPU with AVX512-BF16, the first `Linear4bit.forward` in eval mode repacks ``weight.data`` for
an inference kernel and sets ``quant_state.packing_format_for_cpu``. In that layout
`dequantize_4bit` returns noise without an error, and no gradient passes.

Upstream's own inverse restores the 4-bit codes exactly but not the scales: without double
quantization it leaves ``absmax`` transposed (the weights are then off by 0.23, relative), and with
it, it computes a new offset in half precision. So the codes are taken from it and the scales are
restored here. They were rounded to bfloat16 on the way; with double quantization the offset was
not, and nearly all of their codes (99.8 % on normal weights) come back as they were.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from quantlora_bnb.library import library

#: Block size of the second quantization, of ``absmax``; the only one upstream's kernels take.
NESTED_BLOCKSIZE = 256


def is_repacked(layer: nn.Module) -> bool:
    """Whether the layer is in the CPU layout, or was and has kept its rounded scales."""
    state = _state(layer)
    return state is not None and _in_cpu_layout(state)


def ordinary_state(layer: nn.Module) -> Any:
    """The layer's ``quant_state`` with the CPU layout undone; None where there is none."""
    state = _state(layer)
    if state is not None and _in_cpu_layout(state):
        with torch.inference_mode(False), torch.no_grad():
            _restore(layer, state)
    return state


def absmax(state: Any) -> Tensor:
    """The scale of each block in float32, ``(blocks,)``."""
    scales: Tensor = state.absmax
    if state.nested:
        scales = library().functional.dequantize_blockwise(scales, state.state2) + state.offset
    return scales.float()


def state_tensors(layer: Any) -> tuple[Tensor, ...]:
    """What the weight is made of, in whatever layout it is now."""
    state = _state(layer)
    inner = getattr(state, "state2", None)
    offset = getattr(state, "offset", None)
    scales = (state.absmax, *(() if inner is None else (inner.absmax, inner.code)))
    return (layer.weight, *scales, *((offset,) if isinstance(offset, Tensor) else ()))


def _state(layer: nn.Module) -> Any:
    """A weight that FSDP has flattened has lost its own; the layer still holds it."""
    own = getattr(layer.weight, "quant_state", None)
    return getattr(layer, "quant_state", None) if own is None else own


def _in_cpu_layout(state: Any) -> bool:
    """Packed, or left with transposed scales by upstream's inverse (in ``state_dict``, say)."""
    packed = getattr(state, "packing_format_for_cpu", False)
    return bool(packed) or state.absmax.ndim == 2


def _restore(layer: Any, state: Any) -> None:
    scales = state.absmax.float().t().reshape(-1)
    offset = getattr(state, "offset", None)
    if getattr(state, "packing_format_for_cpu", False):
        inverse = library().functional._convert_weight_packed_for_cpu_inverse
        layer.weight.data, state = inverse(layer.weight.data.clone(), state)
    _set_scales(state, scales, offset)
    layer.weight.quant_state = layer.quant_state = state


def _set_scales(state: Any, scales: Tensor, offset: Any) -> None:
    if not state.nested:
        state.absmax = scales
        return
    quantize = library().functional.quantize_blockwise
    state.absmax, state.state2 = quantize(scales - offset, blocksize=NESTED_BLOCKSIZE)
    state.offset = offset
