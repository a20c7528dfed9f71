"""Stacks of matrices in a packed format: what a format says to pack the experts of a mixture.

Optional: a `Quantizer` that says nothing here packs layers only. Each expert is packed by itself,
so that one can be unpacked without the others and no block holds weights of two.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from quantlora.formats.packed_module import PackedModule


class ExpertStack(PackedModule):
    """Matrices ``(experts, out_features, in_features)`` in a packed format.

    Subclass it with plain parameters and buffers whose first dimension counts the experts: a state
    dict, safetensors and sharding then need no code of the format's.
    """

    #: Name of the quantizer that packs it.
    format: ClassVar[str]
    #: What products are to be taken in; None: the dtype of the input.
    compute_dtype: torch.dtype | None = None
    #: Whether it comes from a checkpoint that Transformers loads, and may go back into one: its
    #: entries in the state dict are then named as the files name them, and hold the same bytes.
    in_checkpoints: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(experts, out_features, in_features)``."""
        raise NotImplementedError

    def dequantize(self, experts: Sequence[int], dtype: torch.dtype) -> Tensor:
        """The matrices of ``experts``, ``(len(experts), out_features, in_features)``, as float.

        Called for each expert that is hit in every forward and backward; must not change anything.
        """
        raise NotImplementedError

    @classmethod
    def joined(cls, parts: Sequence[ExpertStack]) -> ExpertStack:
        """One stack of all experts of ``parts``, in their order.

        By default tensors whose first dimension counts the experts are joined, and all others are
        the first part's. Override it where a stack notes the number of experts otherwise.
        """
        new = deepcopy(parts[0])
        for name, tensor in [*new.named_buffers(), *new.named_parameters()]:
            if tensor.dim() and len(tensor) == parts[0].shape[0]:
                whole = torch.cat([getattr(*_owner(part, name)) for part in parts])
                if isinstance(tensor, nn.Parameter):
                    whole = nn.Parameter(whole, requires_grad=False)
                setattr(*_owner(new, name), whole)
        return new

    def describe(self) -> dict[str, Any]:
        """Facts as in `Quantizer.describe`: bits, block size and so on."""
        return {}


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, own = name.rpartition(".")
    return module.get_submodule(path), own
