"""`Bitsandbytes4bitExperts`: the matrices of a mixture's experts, each packed as a `Linear4bit` is.

bitsandbytes itself packs none of them. Blocks run over the flattened matrix of one expert.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from quantlora import ExpertStack, PackedState
from quantlora_bnb.cpu_layout import NESTED_BLOCKSIZE, ordinary_state
from quantlora_bnb.library import library
from quantlora_bnb.packed_state import from_json, to_json
from quantlora_bnb.settings import Settings4bit, dtype_name

#: Dtypes that bitsandbytes unpacks into.
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class Bitsandbytes4bitExperts(ExpertStack):
    """Codes and scales of one packed layer for each expert, stacked along a first dimension.

    ``absmax`` are the scales; with double quantization they are codes too, and ``nested_absmax``,
    ``nested_code`` and ``offset`` say of what.
    """

    format = "bitsandbytes_4bit"
    packed: Tensor
    absmax: Tensor
    nested_absmax: Tensor | None
    nested_code: Tensor | None
    offset: Tensor | None

    def __init__(self, layers: Sequence[Any], dtype: torch.dtype) -> None:
        states = [ordinary_state(layer) for layer in layers]
        out_features, in_features = states[0].shape
        self._describe(out_features, in_features, Settings4bit.of(layers[0]), dtype)
        codes = [layer.weight.data.view(-1, 1).view(torch.uint8).view(-1) for layer in layers]
        tensors: dict[str, Tensor | None] = {
            "packed": torch.stack(codes),
            "absmax": torch.stack([state.absmax for state in states]),
            **dict.fromkeys(("nested_absmax", "nested_code", "offset")),
        }
        if states[0].nested:
            tensors["nested_absmax"] = torch.stack([state.state2.absmax for state in states])
            tensors["nested_code"] = states[0].state2.code
            tensors["offset"] = torch.stack([torch.as_tensor(state.offset) for state in states])
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def _describe(
        self, out_features: int, in_features: int, settings: Settings4bit, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = out_features, in_features
        self.settings, self.dtype = settings, dtype
        self.compute_dtype = settings.compute_dtype

    def packed_state(self) -> PackedState:
        sizes = {"out_features": self.out_features, "in_features": self.in_features}
        own = {**sizes, "dtype": dtype_name(self.dtype), "settings": to_json(self.settings)}
        return PackedState(own, self.state_dict())

    @classmethod
    def from_state(cls, state: PackedState) -> Bitsandbytes4bitExperts:
        """What `packed_state` was taken from; it holds these tensors."""
        new, own = cls.__new__(cls), dict(state.settings)
        own["dtype"], own["settings"] = getattr(torch, own["dtype"]), from_json(own["settings"])
        new._describe(**own)
        for name in ("packed", "absmax", "nested_absmax", "nested_code", "offset"):
            new.register_buffer(name, state.tensors.get(name))
        return new

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.packed), self.out_features, self.in_features

    def dequantize(self, experts: Sequence[int], dtype: torch.dtype) -> Tensor:
        out = self.packed.new_empty((len(experts), *self.shape[1:]), dtype=dtype)
        target = dtype if dtype in _FLOATS else torch.float32
        count = self.out_features * self.in_features
        for i, expert in enumerate(experts):
            weight = torch.ops.bitsandbytes.dequantize_4bit.default(
                self.packed[expert].view(-1, 1),
                self._scales(expert),
                self.settings.blocksize,
                self.settings.quant_type,
                (1, count),  # the CPU kernel counts blocks by row
                target,
            )
            out[i] = weight.view(self.out_features, self.in_features)
        return out

    def _scales(self, expert: int) -> Tensor:
        """Of each block, in float32."""
        scales = self.absmax[expert]
        if self.nested_absmax is None or self.offset is None:
            return scales
        restored: Tensor = library().functional.dequantize_blockwise(
            scales,
            absmax=self.nested_absmax[expert],
            code=self.nested_code,
            blocksize=NESTED_BLOCKSIZE,
        )
        return restored + self.offset[expert]

    def describe(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"bits": 4, **asdict(self.settings)}
        for name in ("quant_storage", "compute_dtype"):
            facts[name] = dtype_name(facts[name])
        return facts
