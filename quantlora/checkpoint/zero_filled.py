"""`zero_filled`: a smaller rank in the place of a larger one, which zeros make the same update."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def zero_filled(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """``tensor`` at the beginning of zeros of ``shape``, in its dtype and on its device."""
    wide = tensor.new_zeros(tuple(shape))
    wide[tuple(slice(size) for size in tensor.shape)] = tensor
    return wide
