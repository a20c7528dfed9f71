"""The copies of frozen weights that inference keeps: made once, watched, bounded, dropped.

They are no part of a layer: not of its state dict, not of a `copy.deepcopy` or a pickle. A copy
counts for as long as the layer holds the tensors that it was made of, unchanged; a forward with
gradients drops it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from quantlora.errors import ConfigError
from quantlora.formats.inference_copy import FEW_ROWS, InferenceCopy, Product
from quantlora.formats.offloaded import is_offloaded
from quantlora.formats.tensor_mark import version
from quantlora.formats.transforms import transformed
from quantlora.hardware import physical_memory
from quantlora.units import format_size

if TYPE_CHECKING:
    from quantlora.formats.quantizer import Quantizer

#: Share of the machine's memory that copies may take by default.
_SHARE = 4
#: A layer whose tensors change so often between two calls gets no more copies.
_RESTLESS = 3


def _quarter_of_memory() -> int:
    memory = physical_memory()
    return 2**31 if memory is None else memory // _SHARE


@dataclass(frozen=True)
class InferenceMemory:
    """Bytes that copies of frozen weights may take in this process, and take now."""

    limit: int
    used: int

    def __str__(self) -> str:
        return f"{format_size(self.used)} of {format_size(self.limit)} for inference copies"


class _Source:
    """A tensor as it was: which one, its version, its memory, which is held lest it be used again.

    No reference to the tensor itself: it may refer to its layer, which would then live for ever.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self.version = ref(tensor), version(tensor)
        self._storage, self._address = tensor.untyped_storage(), tensor.data_ptr()

    def is_still(self, tensor: Tensor) -> bool:
        same = self._tensor() is tensor and tensor._version == self.version
        return same and tensor.data_ptr() == self._address


@dataclass(frozen=True)
class _Kept:
    """A layer's copy; without a product where its tensors change too often for one."""

    product: Product | None
    nbytes: int
    most_rows: int
    dtype: torch.dtype
    sources: tuple[_Source, ...]
    changes: int

    def fits(self, x: Tensor, rows: int) -> bool:
        return x.dtype == self.dtype and rows <= self.most_rows

    def unchanged(self, tensors: Iterable[Tensor]) -> bool:
        now = tuple(tensors)
        if len(now) != len(self.sources):
            return False
        return all(map(_Source.is_still, self.sources, now))


@dataclass
class _State:
    kept: WeakKeyDictionary[nn.Module, _Kept] = field(default_factory=WeakKeyDictionary)
    limit: int = field(default_factory=_quarter_of_memory)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def used(self) -> int:
        return sum(copy.nbytes for copy in list(self.kept.values()))


_STATE = _State()


def inference_memory(limit: int | None = None) -> InferenceMemory:
    """How much memory copies of frozen weights may take in this process, and take now.

    While gradients are off and the model is in eval mode, a layer on a CPU keeps a second form of
    its packed weight, so that a token need not unpack it. Layers beyond the limit do without.

    Args:
        limit: bytes from now on, where it is given; 0 turns copies off. It is a quarter of the
            machine's memory in the beginning. Copies beyond a lower limit are dropped, all of them.

    Raises:
        ConfigError: a negative limit.
    """
    if limit is not None:
        if limit < 0:
            raise ConfigError(f"inference_memory: limit must be 0 or more bytes, got {limit}.")
        with _STATE.lock:
            _STATE.limit = limit
            if _STATE.used() > limit:
                _STATE.kept.clear()
    return InferenceMemory(_STATE.limit, _STATE.used())


def free_inference_copies(model: nn.Module) -> int:
    """Drop the copies that the layers of ``model`` keep; returns the bytes they took."""
    found = [_STATE.kept.pop(module, None) for module in model.modules()]
    return sum(copy.nbytes for copy in found if copy is not None)


def drop_copy(layer: nn.Module) -> None:
    """Drop the copy of ``layer``: it is about to be trained through."""
    if torch.compiler.is_compiling():  # first: a graph must not be guarded by what is kept
        return
    if _STATE.kept:
        _STATE.kept.pop(layer, None)


def copied_product(quantizer: Quantizer, layer: nn.Module, x: Tensor) -> Tensor | None:
    """``x · Wᵀ`` by a copy of the weight; None where there is none, and none is to be made.

    For inference only: the caller has seen that gradients are off.
    """
    if not x.is_cpu or torch.compiler.is_compiling() or transformed():
        return None
    *batch, width = x.shape
    rows = math.prod(batch)
    kept = _current(quantizer, layer, x, rows)
    if kept is None or kept.product is None or not (rows and width):
        return None
    y = kept.product(x.reshape(rows, width).contiguous())
    return y.view(*batch, y.shape[-1])


def planned(quantizer: Quantizer, layer: nn.Module, dtype: torch.dtype) -> InferenceCopy | None:
    """The copy that a token makes of ``layer``, as far as there is memory."""
    if is_offloaded(layer) or quantizer.device(layer).type != "cpu":
        return None
    return quantizer.inference_copy(layer, dtype)


def _current(quantizer: Quantizer, layer: nn.Module, x: Tensor, rows: int) -> _Kept | None:
    kept = _STATE.kept.get(layer)
    if kept is None:
        return _make(quantizer, layer, x, rows, 0)
    if kept.unchanged(quantizer.weight_tensors(layer)):
        if kept.fits(x, rows):
            return kept
        if x.dtype == kept.dtype:
            return None
    return _make(quantizer, layer, x, rows, kept.changes + 1)


def _make(
    quantizer: Quantizer, layer: nn.Module, x: Tensor, rows: int, changes: int
) -> _Kept | None:
    with _STATE.lock, torch.inference_mode(False), torch.no_grad():
        _STATE.kept.pop(layer, None)
        copy = planned(quantizer, layer, x.dtype) if 0 < rows <= FEW_ROWS else None
        if copy is None or rows > copy.most_rows or _STATE.used() + copy.nbytes > _STATE.limit:
            return None
        product = copy.make() if changes < _RESTLESS else None
        sources = tuple(map(_Source, quantizer.weight_tensors(layer)))
        if any(source.version < 0 for source in sources):
            return None  # of inference mode: a change would not show
        nbytes = copy.nbytes if product is not None else 0
        kept = _Kept(product, nbytes, copy.most_rows, x.dtype, sources, changes)
        _STATE.kept[layer] = kept
    return kept
