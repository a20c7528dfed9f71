"""Tensors of a subclass taken apart: what they hold in memory, as plain tensors.

Such a tensor shows the shape and dtype of the weight that it stands for, and has no memory itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def plain_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """``tensor`` itself, or those inside it by ``__tensor_flatten__``, however deep."""
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        yield from plain_tensors(getattr(tensor, name))


def count_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes that ``tensors`` hold."""
    plain = (inner for tensor in tensors for inner in plain_tensors(tensor))
    return sum(part.numel() * part.element_size() for part in plain)
