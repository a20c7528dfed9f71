"""From float rows to blocks, by the package ``gguf``, which rounds as llama.cpp does."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quantlora import BackendError, check_packable
from quantlora_gguf.block_types import BLOCK_TYPES, BlockType
from quantlora_gguf.layer import GgufLinear
from quantlora_gguf.requires import GGUF

#: What float layers are packed to, by bits.
BY_BITS = {4: "Q4_0", 5: "Q5_0", 8: "Q8_0"}
#: The types that can be packed at all.
PACKED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4", "F16", "BF16")


def packed_linear(
    linear: nn.Linear, block_type: str, where: str, dtype: torch.dtype | None = None
) -> GgufLinear:
    """``linear`` in blocks, its bias carried over.

    Raises:
        BackendError: the type cannot be packed, or a row is no multiple of its block.
    """
    check_packable(linear, where)
    kind = _packable(block_type, linear.in_features, where)
    rows, width = linear.out_features, linear.in_features
    weight = linear.weight.detach()
    layer = GgufLinear(
        width, rows, False, block_type=block_type, device="meta", dtype=dtype or weight.dtype
    )
    layer.weight = nn.Parameter(pack(weight, kind), requires_grad=False)
    layer._like = torch.empty(0, dtype=layer.dtype, device=weight.device)
    if linear.bias is not None:
        layer.bias = nn.Parameter(linear.bias.detach().to(layer.dtype, copy=True), False)
    return layer.train(linear.training)


def pack(weight: Tensor, kind: BlockType) -> Tensor:
    """Weights ``(..., in_features)`` as bytes ``(..., row_bytes)`` on the same device."""
    GGUF.check().require()
    import gguf

    values = weight.float().cpu().contiguous().numpy()
    packed = gguf.quantize(values, gguf.GGMLQuantizationType[kind.name])
    shape = (*weight.shape[:-1], kind.row_bytes(weight.shape[-1]))
    return torch.from_numpy(packed.view("uint8").reshape(shape)).to(weight.device)


def _packable(block_type: str, width: int, where: str) -> BlockType:
    if block_type not in PACKED:
        raise BackendError(
            f"{where}: blocks of type {block_type} can be read, but not packed; these can be: "
            f"{', '.join(PACKED)}. Merge with mode='dequantize', or keep the adapter apart."
        )
    kind = BLOCK_TYPES[block_type]
    if width % kind.elements:
        raise BackendError(
            f"{where}: {width} inputs are no multiple of {kind.elements}, the block of "
            f"{block_type}. Leave this layer out, or take another backend."
        )
    return kind
