"""Norms of matrices of any size: squares of 1e20 or 1e-25 have no room in float32."""

from __future__ import annotations

from torch import Tensor

#: Norms whose fourth powers, which the passes of the low-rank step meet, have room.
_ROOM = (1e-6, 1e6)


def has_room(size: float) -> bool:
    """Whether a matrix of norm ``size`` can be multiplied with itself and squared."""
    return _ROOM[0] < size < _ROOM[1]


def norm(matrix: Tensor) -> float:
    """``‖matrix‖`` (Frobenius)."""
    found = float(matrix.norm())
    if has_room(found):
        return found
    largest = float(matrix.abs().amax())
    return largest * float((matrix / largest).norm()) if largest else 0.0
