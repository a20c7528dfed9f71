"""How a tensor stood, without holding its memory: by its version, its storage and a few values.

The version counter rises with each change in place, and knows nothing of `tensor.data`: neither of
`tensor.data = other` nor of `tensor.data.mul_(2)`. Sharding assigns `.data` each time it gathers,
with the same values, so another storage alone means nothing; values that differ do. They are
compared on CPUs only: elsewhere each comparison would wait for the device.
"""

from __future__ import annotations

from weakref import ref

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from quantlora.formats.transforms import transformed

#: So many values of a tensor stand for all of them.
_VALUES = 64
_PLAIN = (Tensor, nn.Parameter)


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
        if now is None or now.dtype != before.dtype or now.shape != before.shape:
            return False
        return not torch.equal(_bytes(now), _bytes(before))

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


def _sample(tensor: Tensor) -> Tensor | None:
    """Up to 64 values with even steps between them; None where they are not to be had at once."""
    if not tensor.is_cpu or not tensor.is_contiguous():
        return None
    if type(tensor) not in _PLAIN:
        tensor = tensor.detach().as_subclass(Tensor)
    size = tensor.numel()
    few, step = min(size, _VALUES), max(1, size // _VALUES)
    with torch.no_grad():
        return torch.as_strided_copy(tensor, (few,), (step,), tensor.storage_offset())


def _bytes(sample: Tensor) -> Tensor:
    """By which NaN is itself; all dtypes can be compared so."""
    return sample.view(torch.uint8)
