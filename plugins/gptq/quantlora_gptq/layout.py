"""How the buffers of one layer are to be read: bits, groups, zero-points.

Everything comes from the buffers' shapes and contents. The attributes of a layer are not to be
trusted: on the way through Transformers ``desc_act`` and ``sym`` arrive swapped, and
``qzero_format()`` says 1 over tensors that hold v2 zero-points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from quantlora import BackendError
from quantlora_gptq.requires import library_of

#: The widths GPTQ checkpoints have.
BITS = (2, 3, 4, 8)

BUFFERS = ("qweight", "qzeros", "scales", "g_idx")


@dataclass(frozen=True)
class Layout:
    """What is stored in one layer.

    Args:
        bits, in_features, out_features, groups: by the shapes of the buffers.
        zero_offset: what a stored zero-point lacks; 1 in the v1 format, 0 in v2.
        zero_wraps: the kernel takes zero-points modulo ``2 ** bits``.
        group_index: the group of each input; None when the groups are equal neighbours.
    """

    bits: int
    in_features: int
    out_features: int
    groups: int
    zero_offset: int = 0
    zero_wraps: bool = False
    group_index: Tensor | None = None

    @property
    def group_size(self) -> int:
        return -(-self.in_features // self.groups)


def in_features(layer: nn.Module) -> int:
    """``in_features``, or AutoGPTQ's spelling of it."""
    return int(getattr(layer, "in_features", None) or layer.infeatures)  # type: ignore[arg-type]


def out_features(layer: nn.Module) -> int:
    """``out_features``, or AutoGPTQ's spelling of it."""
    return int(getattr(layer, "out_features", None) or layer.outfeatures)  # type: ignore[arg-type]


def tensor(layer: nn.Module, name: str) -> Tensor:
    """One of the four buffers."""
    value = getattr(layer, name)
    assert isinstance(value, Tensor)
    return value


def layout(layer: nn.Module) -> Layout:
    """How ``layer`` is stored; its buffers have been checked by `check_buffers`."""
    bits, old = stored_bits(layer), ignores_order(layer)
    return Layout(
        bits=bits,
        in_features=in_features(layer),
        out_features=out_features(layer),
        groups=tensor(layer, "scales").shape[0],
        zero_offset=int(library_of(layer) == "auto_gptq"),  # it keeps v1 zeros as the file has them
        zero_wraps=old and bits != 3,
        group_index=None if old else group_index(layer),
    )


def ignores_order(layer: nn.Module) -> bool:
    """AutoGPTQ's kernel for ``desc_act=False`` takes groups for neighbours, whatever g_idx says."""
    return getattr(layer, "QUANT_TYPE", None) == "cuda-old"


def group_index(layer: nn.Module) -> Tensor | None:
    """The group of each input, None when the groups are equal neighbours."""
    g_idx, groups = tensor(layer, "g_idx"), tensor(layer, "scales").shape[0]
    return None if _are_neighbours(g_idx, groups) else g_idx.long()


#: By g_idx: its version, the groups, and what was found. An accelerator is waited for once.
_NEIGHBOURS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _are_neighbours(g_idx: Tensor, groups: int) -> bool:
    if torch.compiler.is_compiling() or g_idx.is_inference():
        return _compare(g_idx, groups)
    key = g_idx._version, groups
    known: Any = _NEIGHBOURS.get(g_idx)  # type: ignore[no-untyped-call]
    if known is None or known[0] != key:
        known = _NEIGHBOURS[g_idx] = key, _compare(g_idx, groups)
    return bool(known[1])


def _compare(g_idx: Tensor, groups: int) -> bool:
    """Without values, on the meta device, they are taken for neighbours."""
    count = g_idx.numel()
    if count % groups:
        return False
    neighbours = torch.arange(count, device=g_idx.device, dtype=g_idx.dtype) // (count // groups)
    return g_idx.is_meta or torch.equal(g_idx, neighbours)


def stored_bits(layer: nn.Module) -> int:
    """The width that the shape of qweight says; 0 where it is no whole number."""
    bits, rest = divmod(tensor(layer, "qweight").shape[0] * 32, in_features(layer))
    return 0 if rest else bits


def check_buffers(layer: nn.Module, path: str) -> None:
    """Raise `BackendError` where the buffers contradict each other or are empty."""
    for problem in _problems(layer):
        raise BackendError(
            f"{path}: this GPTQ layer cannot be read: {problem}. The checkpoint is damaged or "
            f"incomplete, or was written by something that packs in another way."
        )


def _problems(layer: nn.Module) -> list[str]:
    if missing := [name for name in BUFFERS if not isinstance(getattr(layer, name, None), Tensor)]:
        return [f"it has no {', '.join(missing)}"]
    if wrong := _wrong_dtypes(layer):
        return wrong
    bits, rows = stored_bits(layer), tensor(layer, "qweight").shape[0]
    if bits not in BITS:
        return [
            f"qweight has {rows} rows for {in_features(layer)} inputs, which is not 2, 3, 4 or 8 "
            f"bits for each"
        ]
    return _wrong_shapes(layer, bits) or _wrong_values(layer)


def _wrong_dtypes(layer: nn.Module) -> list[str]:
    words = [f"{n} is {tensor(layer, n).dtype}" for n in ("qweight", "qzeros", "g_idx")
             if tensor(layer, n).dtype != torch.int32]  # fmt: skip
    floating = tensor(layer, "scales").is_floating_point()
    return [f"{word}, not int32" for word in words] + ([] if floating else ["scales are not float"])


def _wrong_shapes(layer: nn.Module, bits: int) -> list[str]:
    rows, out, groups = in_features(layer), out_features(layer), tensor(layer, "scales").shape[0]
    wanted = {
        "qweight": (_words(rows, bits), out),
        "qzeros": (groups, _words(out, bits)),
        "scales": (groups, out),
        "g_idx": (rows,),
    }
    found = {name: tuple(tensor(layer, name).shape) for name in wanted}
    return [
        f"{name} has shape {found[name]}, but {bits} bits, {rows} inputs, {out} outputs and "
        f"{groups} groups need {shape}"
        for name, shape in wanted.items()
        if found[name] != shape
    ]


def _wrong_values(layer: nn.Module) -> list[str]:
    scales, g_idx = tensor(layer, "scales"), tensor(layer, "g_idx")
    if scales.is_meta:
        return ["it is on the meta device: nothing was loaded into it"]
    if not scales.any():
        return ["all its scales are zero: the checkpoint lacks this layer's tensors"]
    if not scales.isfinite().all():
        return ["its scales hold NaN or infinite values"]
    low, high = int(g_idx.min()), int(g_idx.max())
    if low < 0 or high >= scales.shape[0]:
        return [f"g_idx names groups {low} to {high}, but there are {scales.shape[0]}"]
    named = int(g_idx.bincount().count_nonzero())  # one, where nothing was loaded: zeros
    if named < scales.shape[0]:
        return [f"g_idx names {named} group{'s' * (named > 1)} of {scales.shape[0]}"]
    return []


def _words(codes: int, bits: int) -> int:
    return -(-codes * bits // 32)
