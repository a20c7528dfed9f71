"""From float rows to blocks: simple types by the package ``gguf``, the others by `k_packing`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quantlora import BackendError, check_packable
from quantlora_gguf.block_types import BLOCK_TYPES, BlockType
from quantlora_gguf.k_packing import K_TYPES, pack_k
from quantlora_gguf.layer import GgufLinear
from quantlora_gguf.requires import GGUF

#: What float layers are packed to, by bits.
BY_BITS = {2: "Q2_K", 3: "Q3_K", 4: "Q4_0", 5: "Q5_0", 6: "Q6_K", 8: "Q8_0"}


def packed_linear(
    linear: nn.Linear, block_type: str, where: str, like: GgufLinear | None = None
) -> GgufLinear:
    """``linear`` in blocks, its bias carried over.

    Args:
        like: a layer in these blocks, whose dtype is taken; blocks with packed scales keep those
            where they are the best.

    Raises:
        BackendError: there is no such type, or a row is no multiple of its block.
    """
    check_packable(linear, where)
    kind = _packable(block_type, linear.in_features, where)
    rows, width = linear.out_features, linear.in_features
    weight = linear.weight.detach()
    dtype = weight.dtype if like is None else like.dtype
    layer = GgufLinear(width, rows, False, block_type=block_type, device="meta", dtype=dtype)
    packed = pack(weight, kind, None if like is None else like.weight.detach())
    layer.weight = nn.Parameter(packed, requires_grad=False)
    if linear.bias is not None:
        layer.bias = nn.Parameter(linear.bias.detach().to(layer.dtype, copy=True), False)
    return layer.train(linear.training)


def pack(weight: Tensor, kind: BlockType, like: Tensor | None = None) -> Tensor:
    """Weights ``(..., in_features)`` as bytes ``(..., row_bytes)`` on the same device."""
    if kind.name in K_TYPES:
        return pack_k(weight, kind.name, like)
    GGUF.check().require()
    import gguf

    values = weight.float().cpu().contiguous().numpy()
    packed = gguf.quantize(values, gguf.GGMLQuantizationType[kind.name])
    shape = (*weight.shape[:-1], kind.row_bytes(weight.shape[-1]))
    return torch.from_numpy(packed.view("uint8").reshape(shape)).to(weight.device)


def _packable(block_type: str, width: int, where: str) -> BlockType:
    if block_type not in BLOCK_TYPES:
        raise BackendError(
            f"{where}: there is no block type {block_type!r}; these are: {', '.join(BLOCK_TYPES)}."
        )
    kind = BLOCK_TYPES[block_type]
    if width % kind.elements:
        raise BackendError(
            f"{where}: {width} inputs are no multiple of {kind.elements}, the block of "
            f"{block_type}. Leave this layer out, or take another backend."
        )
    return kind
