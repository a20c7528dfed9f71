"""torchao's tensors: what they hold, and how another weight is packed as one of them.

They stand for a float weight, in the dtype that it had, and come apart by ``__tensor_flatten__``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quantlora import AffineWeight, BackendError

#: Kinds by the class of the tensor; NF4 is read only, for the library cannot copy each such tensor.
KINDS = {
    "Int8Tensor": "int8",
    "IntxUnpackedToInt8Tensor": "intx",
    "Float8Tensor": "float8",
    "NF4Tensor": "nf4",
}


def is_torchao(layer: nn.Module) -> bool:
    """Whether the weight of ``layer``, a linear one, is a tensor of torchao's."""
    weight = getattr(layer, "weight", None)
    own = type(getattr(weight, "data", None)) if isinstance(weight, Tensor) else object
    return isinstance(layer, nn.Linear) and own.__module__.startswith("torchao.")


def dequantize(weight: Any) -> Tensor:
    """``(out, in)`` in the dtype of the weight, or float32 where the class can give it."""
    if hasattr(weight, "get_original_weight"):
        found: Tensor = weight.get_original_weight()
    elif type(weight.data).__name__ in ("Int8Tensor", "Float8Tensor"):
        found = weight.dequantize(torch.float32)
    else:
        found = weight.dequantize()
    return found.detach()


@dataclass(frozen=True)
class Settings:
    """How a weight is packed.

    Args:
        kind: "int8", "intx", "float8" or "nf4".
        bits: of the codes.
        group_size: neighbours along a row that share a scale; None: a row; 0: the tensor.
    """

    kind: str
    bits: int
    group_size: int | None

    @classmethod
    def of(cls, weight: Any) -> Settings:
        """Those of a tensor of torchao's."""
        kind = KINDS.get(type(weight.data).__name__, type(weight.data).__name__)
        if kind == "nf4":
            return cls(kind, 4, weight.block_size)
        block = [*getattr(weight, "block_size", weight.shape)]
        by_row = None if block[0] == 1 or len(weight) == 1 else 0
        size = by_row if block[-1] == weight.shape[1] else block[-1]
        target = str(getattr(weight, "target_dtype", "int8" if "8" in kind else "int4"))
        return cls(kind, int(target[-1]), size)

    def config(self) -> Any:
        """The library's config for it."""
        from torchao import quantization as q
        from torchao.quantization.granularity import PerGroup, PerRow, PerTensor

        grouped = PerGroup(self.group_size) if self.group_size else None
        whole = PerTensor() if self.group_size == 0 else PerRow()
        if self.kind == "int8":
            return q.Int8WeightOnlyConfig(granularity=grouped or whole)
        if self.kind == "float8" and grouped is None:
            return q.Float8WeightOnlyConfig(granularity=whole)
        if self.kind == "intx":
            dtype = getattr(torch, f"int{self.bits}")
            axis = q.PerAxis(0)
            return q.IntxWeightOnlyConfig(weight_dtype=dtype, granularity=grouped or axis)
        raise BackendError(
            f"torchao: a {self.kind} weight can be read but not packed here; "
            f'mode="dequantize" merges into a float one.'
        )

    def pack(self, linear: nn.Linear) -> None:
        """Put a packed weight in place of that of ``linear``."""
        from torchao.quantization import quantize_

        quantize_(linear, self.config())
        vars(linear).pop("extra_repr", None)  # torchao's is a method that cannot be pickled


def to_affine(weight: Any) -> AffineWeight | None:
    """Integers with scales by rows or groups; None for the others."""
    found = Settings.of(weight)
    if found.kind not in ("int8", "intx") or found.group_size == 0:
        return None
    half, scales = 2 ** (found.bits - 1), weight.scale.float()
    scales = scales.view(weight.shape[0], -1)
    zeros = torch.zeros_like(scales) if weight.zero_point is None else weight.zero_point
    bits = found.bits if found.bits in (2, 3, 4, 8) else 8
    codes = (weight.qdata.to(torch.int16) + half).to(torch.uint8)
    size = found.group_size or weight.shape[1]
    return AffineWeight(codes, scales, zeros.view(scales.shape).to(scales) + half, bits, size)
