"""Adapters on experts that PEFT before 0.19 has written: A and B are each other's.

PEFT 0.17 and 0.18 took a parameter ``(experts, out, in)`` for ``(experts, in, out)`` in every
module (pull requests 3083 and 3165 of huggingface/peft). Its update was the same kind of product,
``ΔW[e] = A[e]ᵀ · B[e]ᵀ``, so such a file is turned over without loss. Shapes tell the two layouts
apart, but where inputs and outputs are as many; then the version in the file does.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.checkpoint.keys import file_key
from quantlora.checkpoint.saved_adapter import SavedAdapter
from quantlora.config.lora_config import LoraConfig
from quantlora.errors import warn
from quantlora.experts.stacks_format import parameter_shapes
from quantlora.layers.layer import LoraLayer
from quantlora.layers.parameters import LoraParameters, picked_parameters
from quantlora.names import plain_path

_BY_VERSION = (
    " Their shapes fit both layouts, so the version alone decides: where PEFT 0.19 or later has "
    'written the file, put its "peft_version" into adapter_config.json.'
)
#: Keys of A and B in the file, and the number of experts, outputs and inputs.
_Pair = tuple[str, str, tuple[int, int, int]]


def without_old_layout(
    source: str,
    adapted: AdaptedModel,
    config: LoraConfig,
    tensors: Mapping[str, Tensor],
    file: SavedAdapter,
) -> Mapping[str, Tensor]:
    """``tensors`` by their keys in the file, turned over where it is in the old layout."""
    pairs = [p for p in _pairs(adapted, config) if p[0] in tensors and p[1] in tensors]
    if not pairs or not _is_old(tensors, pairs, file):
        return tensors
    warn(
        f"{source}: its adapters on experts are in the layout of PEFT before 0.19 "
        f"(peft_version {file.peft_version or 'not given'}) and were turned over."
        + ("" if _told_by_shape(pairs) else _BY_VERSION)
    )
    new = dict(tensors)
    for A, B, (experts, _, _) in pairs:
        new[A], new[B] = _turned(tensors[A], tensors[B], experts)
    return new


def _is_old(tensors: Mapping[str, Tensor], pairs: list[_Pair], file: SavedAdapter) -> bool:
    told = [(tensors[A].shape[1], tensors[B].shape[0], sizes) for A, B, sizes in pairs]
    if any((into, out) != sizes[:0:-1] for into, out, sizes in told):
        return all((out, into) == sizes[:0:-1] for into, out, sizes in told)
    if _told_by_shape(pairs):
        return False
    return file.says_old_experts


def _told_by_shape(pairs: list[_Pair]) -> bool:
    """Whether some parameter has not as many inputs as outputs."""
    return any(out != into for _, _, (_, out, into) in pairs)


def _turned(A: Tensor, B: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """A ``(experts · r, out)`` and B ``(in, r · experts)`` as ``(…, in)`` and ``(out, …)``."""
    first, second = A.reshape(experts, -1, A.shape[1]), B.reshape(len(B), -1, experts)
    new_A = second.permute(2, 1, 0).reshape(-1, len(B))
    return new_A.contiguous(), first.permute(2, 1, 0).reshape(A.shape[1], -1).contiguous()


def _pairs(adapted: AdaptedModel, config: LoraConfig) -> list[_Pair]:
    """Of all targeted parameters that the two layouts differ in."""
    found = []
    for path, module in adapted.modules.items() if config.target_parameters else ():
        if isinstance(module, LoraLayer) and not isinstance(module, LoraParameters):
            continue
        base = module.base_layer if isinstance(module, LoraParameters) else module
        shapes = parameter_shapes(base)
        names = picked_parameters(path, shapes, config)
        for depth, name in enumerate(reversed(names)):
            if len(shapes[name]) == 3 and not getattr(base, "is_transposed", False):
                inner = "base_layer." * depth
                A, B = (file_key(plain_path(path), f"{inner}lora_{s}.weight") for s in "AB")
                found.append((A, B, (shapes[name][0], shapes[name][1], shapes[name][2])))
    return found
