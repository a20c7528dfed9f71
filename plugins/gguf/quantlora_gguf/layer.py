"""`GgufLinear` and `GgufEmbedding`: frozen layers whose weight is rows of ggml's blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from quantlora import PackedModule
from quantlora_gguf.block_types import BLOCK_TYPES, BlockType
from quantlora_gguf.product import packed_product


class _Packed(PackedModule):
    """A weight ``(rows, bytes of a row)`` in uint8, a parameter: so ties and sharding hold.

    Args:
        rows, width: the shape of the weight it stands for.
        block_type: a name of `BLOCK_TYPES`.
        dtype: that of the float parts and of what comes out where no input says it; follows
            ``.to(dtype)``, which leaves the blocks alone.
    """

    weight: nn.Parameter

    def __init__(
        self,
        rows: int,
        width: int,
        block_type: str,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.block_type, self.dtype = block_type, dtype or torch.get_default_dtype()
        shape = (rows, self.kind.row_bytes(width))
        packed = torch.empty(shape, dtype=torch.uint8, device=device)
        self.weight = nn.Parameter(packed, requires_grad=False)

    @property
    def kind(self) -> BlockType:
        """The type of the blocks."""
        return BLOCK_TYPES[self.block_type]

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight ``(rows, width)``, rounded to ``dtype`` once; a new tensor."""
        return self.kind.dequantize(self.weight.detach(), dtype)


class GgufLinear(_Packed):
    """``y = x · weightᵀ + bias`` for a weight ``(out_features, in_features)`` in blocks.

    Not an `nn.Linear`: nothing may take its bytes for a float weight. It is made empty, for
    `load_state_dict`; `GgufQuantizer.quantize` makes one from a float layer.

    Args:
        in_features, out_features, bias: as for `nn.Linear`; the bias stays float.
        block_type: a name of `BLOCK_TYPES`; ``in_features`` is a multiple of its block.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        block_type: str,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(out_features, in_features, block_type, device, dtype)
        self.in_features, self.out_features = in_features, out_features
        empty = torch.empty(out_features, dtype=self.dtype, device=device) if bias else None
        self.bias = None if empty is None else nn.Parameter(empty, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y = packed_product(x, self.weight, self.kind)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, block_type={self.block_type}"
        )


class GgufEmbedding(_Packed):
    """Rows of blocks by number: only those asked for are unpacked.

    Args:
        num_embeddings, embedding_dim, padding_idx: as for `nn.Embedding`.
        block_type: a name of `BLOCK_TYPES`; ``embedding_dim`` is a multiple of its block.
        embed_scale: what the rows are multiplied with in the layer's dtype, as Gemma does.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        block_type: str,
        embed_scale: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, block_type, device, dtype)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.padding_idx, self.embed_scale = padding_idx, embed_scale

    def forward(self, tokens: Tensor) -> Tensor:
        rows = self.kind.dequantize(self.weight[tokens], self.dtype)
        return rows if self.embed_scale is None else rows * self._scale(rows)

    def _scale(self, rows: Tensor) -> Tensor:
        """Rounded as the float layer rounds it: a buffer in float32, then the weight's dtype."""
        return torch.tensor(self.embed_scale, device=rows.device).to(rows.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, block_type={self.block_type}"


def settings(layer: _Packed) -> dict[str, Any]:
    """The keyword arguments that make a layer of the same format."""
    return {"block_type": layer.block_type}
