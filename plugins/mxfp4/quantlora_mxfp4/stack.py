"""`Mxfp4Experts`: the matrices of a mixture's experts as gpt-oss's files have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from quantlora import ExpertStack, PackedState
from quantlora_mxfp4.blocks import BLOCK, unpack

_TENSORS = ("blocks", "scales")


class Mxfp4Experts(ExpertStack):
    """Matrices in blocks.

    In a state dict they are ``gate_up_proj_blocks`` and ``gate_up_proj_scales``, as in the files.

    Args:
        blocks, scales: uint8 ``(experts, out, groups, 16)`` and ``(experts, out, groups)``.
        dtype: that of the float weight.
        in_checkpoints: it is one of gpt-oss's, as Transformers loads them.
    """

    format = "mxfp4"
    blocks: Tensor
    scales: Tensor

    def __init__(
        self, blocks: Tensor, scales: Tensor, dtype: torch.dtype, in_checkpoints: bool = False
    ) -> None:
        super().__init__()
        self.dtype, self.in_checkpoints = dtype, in_checkpoints
        self.register_buffer("blocks", blocks)
        self.register_buffer("scales", scales)

    @property
    def shape(self) -> tuple[int, int, int]:
        experts, rows, groups = self.scales.shape
        return experts, rows, groups * BLOCK

    def dequantize(self, experts: Sequence[int], dtype: torch.dtype) -> Tensor:
        chosen = list(experts)
        if len(chosen) == 1:  # a view: no copy of its bytes
            return unpack(self.blocks[chosen[0]], self.scales[chosen[0]], dtype)[None]
        return unpack(self.blocks[chosen], self.scales[chosen], dtype)

    def describe(self) -> dict[str, Any]:
        return {"bits": 4, "block_size": BLOCK}

    def packed_state(self) -> PackedState:
        dtype = str(self.dtype).removeprefix("torch.")
        return PackedState({"dtype": dtype}, {"blocks": self.blocks, "scales": self.scales})

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        for name in _TENSORS:
            tensor = getattr(self, name)
            destination[f"{prefix[:-1]}_{name}"] = tensor if keep_vars else tensor.detach()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        for name in _TENSORS:
            if (given := state_dict.pop(f"{prefix[:-1]}_{name}", None)) is not None:
                state_dict[f"{prefix}{name}"] = given
        super()._load_from_state_dict(state_dict, prefix, *args)
