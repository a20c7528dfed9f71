"""Whether a module's tensors still hold the same bytes, however they were written to.

Version counters see what autograd sees: not ``.data``, not numpy. One pass over the bytes does,
and what is kept is small: a sum for each stretch of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quantlora.formats.flattened import plain_tensors

#: Words of 8 bytes that one sum is over.
_STRETCH = 512
_WORD = 8


def fingerprint(module: nn.Module) -> list[Tensor]:
    """Sums over the bytes of each tensor of ``module``, to be compared with `same`."""
    tensors = [*module.parameters(), *module.buffers()]
    parts = [part for tensor in tensors for part in plain_tensors(tensor) if _has_memory(part)]
    return [sums for part in parts for sums in _sums(part.detach().as_subclass(Tensor))]


def same(first: list[Tensor], other: list[Tensor]) -> bool:
    """Whether two fingerprints are of the same bytes."""
    return len(first) == len(other) and all(
        a.device == b.device and torch.equal(a, b) for a, b in zip(first, other, strict=True)
    )


def _has_memory(tensor: Tensor) -> bool:
    return bool(not tensor.is_meta and tensor.numel() and tensor.untyped_storage().nbytes())


def _sums(tensor: Tensor) -> list[Tensor]:
    flat = tensor.reshape(-1).view(torch.uint8)
    if flat.storage_offset() % _WORD:
        flat = flat.clone()  # it does not begin at a whole word
    whole = len(flat) // (_STRETCH * _WORD) * _STRETCH * _WORD
    stretches = flat[:whole].view(torch.int64).view(-1, _STRETCH)
    return [stretches.sum(1), flat[whole:].clone()]
