"""One layer as the library stores it: a state dict and a scheme, which its compressors read.

A packed layer has ``weight_packed`` (4-bit floats, integers up to 8 bits) or ``weight`` (8-bit
floats and integers), and beside it ``weight_scale``, ``weight_zero_point``, ``weight_shape`` and
``weight_global_scale`` as the scheme needs them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from quantlora import BackendError

HALF = (torch.float16, torch.bfloat16)


def is_compressed(layer: nn.Module) -> bool:
    """Whether the library has compressed the weight of ``layer``, a linear one."""
    scheme, status = (getattr(layer, f"quantization_{a}", None) for a in ("scheme", "status"))
    packed = getattr(scheme, "weights", None) is not None and status == "compressed"
    return packed and isinstance(layer, nn.Linear)


def compressor(scheme: Any) -> Any:
    """The library's class for the format of ``scheme``."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.format import infer_module_format

    found = scheme.format or infer_module_format(nn.Linear, scheme)
    return BaseCompressor.get_value_from_registry(getattr(found, "value", found))


def state(layer: nn.Module) -> dict[str, Tensor]:
    """The layer's own tensors by name."""
    tensors = {**layer._parameters, **layer._buffers}
    return {name: value.detach() for name, value in tensors.items() if value is not None}


def decompress(layer: Any) -> dict[str, Tensor]:
    """The weight ``(out, in)`` and its scales as floats; integers times half scales unrounded."""
    return decompressed(state(layer), layer.quantization_scheme)


def decompressed(tensors: dict[str, Tensor], scheme: Any) -> dict[str, Tensor]:
    """The same of compressed ``tensors``."""
    scale = tensors["weight_scale"]
    wide = {"weight_scale": scale.float() if scale.dtype in HALF else scale}
    found: dict[str, Tensor] = compressor(scheme).decompress({**tensors, **wide}, scheme)
    return found


def by_group(values: Tensor, weights: Any, reduce: str) -> Tensor:
    """``values`` ``(out, in)`` reduced over what shares a scale, in the shape of the scales."""
    over = getattr(torch, reduce)
    if weights.group_size:
        found: Tensor = over(torch.unflatten(values, 1, (-1, weights.group_size)), -1)
    elif weights.strategy == "block":
        rows, columns = weights.block_structure
        padded = nn.functional.pad(
            values, (0, -values.shape[1] % columns, 0, -values.shape[0] % rows)
        )
        found = over(
            torch.unflatten(torch.unflatten(padded, 1, (-1, columns)), 0, (-1, rows)), (1, 3)
        )
    elif weights.strategy == "channel":
        found = over(values, 1, True)
    else:
        found = over(values, (0, 1)).reshape(1)
    return found


def check(layer: Any, path: str) -> None:
    """Raise `BackendError` where the tensors cannot be read, naming ``path`` and the tensor."""
    tensors, problem = state(layer), ""
    try:
        scales = tensors["weight_scale"]
        if scales.is_meta:
            return
        weight = decompress(layer)["weight"]
    except KeyError as error:
        problem = f"it has no {error.args[0]}"
    except Exception as error:  # the library says what, not where
        problem = f"{type(error).__name__}: {error}"
    else:
        wanted = (layer.out_features, layer.in_features)
        if tuple(weight.shape) != wanted:
            problem = f"the weight has shape {tuple(weight.shape)}, not {wanted}"
        elif not weight.isfinite().all():
            problem = "weight_scale or weight holds NaN or infinite values"
        elif not scales.float().any():
            problem = "weight_scale is all zero: the checkpoint lacks this layer's tensors"
    if problem:
        raise BackendError(
            f"{path}: this compressed-tensors layer cannot be read: {problem}. The checkpoint is "
            f"damaged or incomplete."
        )
