"""DoRA's gains while text is generated: the same for every token, so computed once.

A gain needs the norm of every row of ``W + sBA``, and so the whole weight. It is kept for as long
as the tensors that it was computed of are the same and unchanged, and is no part of a layer: not of
its state dict, a `copy.deepcopy` or a pickle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from quantlora.formats.tensor_mark import TensorMark, version
from quantlora.formats.transforms import transformed

_GAINS: WeakKeyDictionary[nn.Module, dict[str, _Kept]] = WeakKeyDictionary()


@dataclass(frozen=True)
class _Kept:
    gain: Tensor
    scale: float
    sources: tuple[tuple[ReferenceType[Tensor], TensorMark], ...]

    def is_current(self, tensors: tuple[Tensor, ...], scale: float) -> bool:
        same = self.scale == scale and len(tensors) == len(self.sources)
        return same and all(
            source() is tensor and mark.is_still(tensor)
            for (source, mark), tensor in zip(self.sources, tensors, strict=True)
        )


def infers(layer: nn.Module) -> bool:
    """Whether ``layer`` computes nothing that a backward needs, outside of a traced graph."""
    if torch.is_grad_enabled() or layer.training or torch.compiler.is_compiling():
        return False
    return not transformed()


def kept_gain(
    layer: nn.Module, name: str, tensors: Iterable[Tensor], scale: float
) -> Tensor | None:
    """The gain of adapter ``name`` that was kept of ``tensors``; None where it is to be computed.

    Args:
        tensors: all that it is computed of: A, B, m and those of the base.
    """
    kept = _GAINS.get(layer, {}).get(name)
    return kept.gain if kept is not None and kept.is_current(tuple(tensors), scale) else None


def keep_gain(
    layer: nn.Module, name: str, tensors: Iterable[Tensor], scale: float, make: Callable[[], Tensor]
) -> Tensor:
    """What ``make`` gives, kept for `kept_gain`."""
    with torch.inference_mode(False), torch.no_grad():
        gain = make()
    now = tuple(tensors)
    if all(version(tensor) >= 0 for tensor in now):  # else a change would not show
        sources = tuple((ref(tensor), TensorMark(tensor)) for tensor in now)
        _GAINS.setdefault(layer, {})[name] = _Kept(gain, scale, sources)
    return gain
