"""8-bit float weights and the scales beside them: W = weight · scale.

There is one scale for the tensor, one for each row, or one for each block of rows and columns. A
scale is a float, or a power of two in 8 bits (``float8_e8m0fnu``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from quantlora import BackendError

DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
#: Names of the scale: Transformers' fine-grained layers, others.
NAMES = ("weight_scale_inv", "weight_scale")
#: Rows and columns of a block where the layer does not say it.
BLOCK = (128, 128)


def is_fp8(layer: nn.Module) -> bool:
    """Whether ``layer`` is linear and has 8-bit floats with a scale.

    A `FP8Linear` that was cast to a wider dtype is one too: its own forward leaves out the scale.
    """
    weight: Any = getattr(layer, "weight", None)
    shaped = isinstance(weight, Tensor) and not nn.parameter.is_lazy(weight)
    known = isinstance(layer, nn.Linear) and shaped and weight.dim() == 2
    others = hasattr(layer, "quantization_scheme") or hasattr(layer, "n_groups")
    packed = known and bool(weight.dtype in DTYPES or type(layer).__name__ == "FP8Linear")
    return packed and not others and isinstance(scale_of(layer), Tensor)


def scale_of(layer: Any) -> Any:
    """The scale as it is stored."""
    return next((s for name in NAMES if (s := getattr(layer, name, None)) is not None), None)


def block_size(layer: Any) -> tuple[int, int]:
    """Rows and columns that share a scale; a layer's that is smaller are the declared ones too."""
    rows, columns = layer.weight.shape
    declared, scale = getattr(layer, "block_size", None), scale_of(layer)
    if scale.numel() == 1 and not declared:
        return rows, columns
    if scale.numel() > 1 and _is_row(layer):
        return 1, columns
    return tuple(declared or BLOCK)


def grid(layer: Any) -> Tensor:
    """The scales in float32, ``(blocks of rows, blocks of columns)``."""
    scale: Tensor = scale_of(layer).detach().float()
    if scale.numel() == 1:
        return scale.reshape(1, 1)
    return scale.reshape(-1, 1) if _is_row(layer) else scale


def multiply(codes: Tensor, scales: Tensor, block: tuple[int, int]) -> Tensor:
    """``codes`` ``(out, in)``, changed in place, times the scale of each block."""
    rows, columns = codes.shape
    scales = scales.repeat_interleave(block[0], 0)[:rows]
    whole = columns // block[1]
    inner, rest = codes[:, : whole * block[1]], codes[:, whole * block[1] :]
    torch.unflatten(inner, 1, (whole, block[1])).mul_(scales[:, :whole, None])
    rest.mul_(scales[:, whole:])
    return codes


def largest(values: Tensor, block: tuple[int, int]) -> Tensor:
    """The largest value of each block of ``values`` ``(out, in)``, none of them negative."""
    rows, columns = values.shape
    padded = nn.functional.pad(values, (0, -columns % block[1], 0, -rows % block[0]))
    parts = torch.unflatten(torch.unflatten(padded, 1, (-1, block[1])), 0, (-1, block[0]))
    return parts.amax(dim=(1, 3))


def check(layer: Any, path: str) -> None:
    """Raise `BackendError` where the tensors contradict each other, naming ``path``."""
    weight, scale, block = layer.weight, scale_of(layer), block_size(layer)
    wanted = tuple(-(-size // step) for size, step in zip(weight.shape, block, strict=True))
    problem = ""
    if weight.dtype not in DTYPES:
        problem = f"weight was cast to {weight.dtype}, its scale was not applied; load it anew"
    elif tuple(weight.shape) != (layer.out_features, layer.in_features):
        problem = f"weight has shape {tuple(weight.shape)}"
    elif tuple(grid(layer).shape) != wanted:
        problem = f"the scale has shape {tuple(scale.shape)}, blocks of {block} need {wanted}"
    elif not scale.is_meta and not (grid(layer).isfinite().all() and grid(layer).any()):
        problem = "the scales are all zero or not finite: the file lacks this layer's"
    elif not weight.is_meta and not weight.float().isfinite().all():
        problem = "weight holds NaN"
    if problem:
        raise BackendError(f"{path}: this FP8 layer cannot be read: {problem}.")


def _is_row(layer: Any) -> bool:
    rows, scale = layer.weight.shape[0], scale_of(layer)
    by_row = ((rows,), (rows, 1))
    return tuple(scale.shape) in by_row or type(layer).__name__ == "CompressedTensorsFP8Linear"
