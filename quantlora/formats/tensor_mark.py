"""How a tensor stood, without holding its memory: by its version, its storage and a few values.

The version counter rises with each change in place, and knows nothing of `tensor.data`: neither of
`tensor.data = other` nor of `tensor.data.mul_(2)`. Sharding assigns `.data` each time it gathers,
with the same values, so another storage alone means nothing; values that differ do. They are
compared on CPUs only: elsewhere each comparison would wait for the device.
"""

from __future__ import annotations

import ctypes
from weakref import ref

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from quantlora.formats.transforms import transformed

#: So many bytes in so many spots of a tensor stand for all of them.
_SPOT, _SPOTS = 32, 8
_PLAIN = (Tensor, nn.Parameter)
#: dtype, elements and bytes.
_Sample = tuple[torch.dtype, int, bytes]


class TensorMark:
    """What ``tensor`` is known by now. A copy, or one from a pickle, knows nothing."""

    __slots__ = ("_sample", "_storage", "version")

    def __init__(self, tensor: Tensor | None = None) -> None:
        self.version = -1 if tensor is None else version(tensor)
        known = None if tensor is None or _is_opaque(tensor) else tensor
        self._storage = None if known is None else ref(known.untyped_storage())
        self._sample = None if known is None else _sample(known)

    def __reduce__(self) -> tuple[type[TensorMark], tuple[()]]:
        return TensorMark, ()

    def was_written(self, tensor: Tensor) -> bool:
        """Whether ``tensor``, the same object, has been changed in place as autograd counts it."""
        return version(tensor) != self.version

    def was_assigned(self, tensor: Tensor) -> bool:
        """Whether ``tensor``, the same object, has other values by way of its ``.data``.

        False for what has been released, converted or moved, and for what is not on a CPU.
        """
        before = self._sample
        if before is None or _is_opaque(tensor) or not tensor.untyped_storage().nbytes():
            return False
        now = _sample(tensor)
        return now is not None and now[:2] == before[:2] and now[2] != before[2]

    def is_still(self, tensor: Tensor) -> bool:
        """Whether ``tensor``, the same object, has the same values for certain."""
        if self.version < 0 or self.was_written(tensor) or self.was_assigned(tensor):
            return False
        if self._storage is None:
            return _is_opaque(tensor)
        return not _is_opaque(tensor) and self._storage() is tensor.untyped_storage()


def version(tensor: Tensor) -> int:
    """Rises with each change in place; tensors made in inference mode do not count."""
    return -1 if tensor.is_inference() else tensor._version


def _is_opaque(tensor: Tensor) -> bool:
    """Whether ``tensor`` has no memory of its own: a subclass around others, one of a transform."""
    if torch.compiler.is_compiling() or transformed():
        return True
    return type(tensor) not in _PLAIN and is_traceable_wrapper_subclass(tensor)


def _sample(tensor: Tensor) -> _Sample | None:
    """Bytes with even steps between them; None where they are not to be had at once.

    By their address: marks are compared for each token, and views and copies would take as long as
    the token's own products.
    """
    if not tensor.is_cpu or not tensor.is_contiguous():
        return None
    size, storage = tensor.nbytes, tensor.untyped_storage()
    if storage.nbytes() < size + tensor.storage_offset() * tensor.itemsize:
        return None  # released in the meantime
    address, few = tensor.data_ptr(), min(size, _SPOT)
    starts = [spot * (size - few) // (_SPOTS - 1) for spot in range(_SPOTS if size else 0)]
    values = b"".join([ctypes.string_at(address + start, few) for start in starts])
    return tensor.dtype, tensor.numel(), values
