"""A small layer for ``python -m quantlora.env --deep``."""

from __future__ import annotations

import torch
from torch import nn

from quantlora import AffineWeight, BackendError, registry

_OUT, _IN, _GROUP, _BITS = 256, 128, 32, 4


def grouped_layer() -> nn.Module:
    """A layer with groups, in the first format that can hold float zero-points.

    Raises:
        BackendError: there is no such format here.
    """
    for quantizer in registry().quantizers.values():
        if quantizer.can_hold_affine and not quantizer.availability_error():
            return quantizer.from_affine(_weight(), None)
    raise BackendError("no installed format holds float zero-points; see quantlora plugins.")


def _weight() -> AffineWeight:
    groups = (_OUT, _IN // _GROUP)
    codes = torch.randint(0, 2**_BITS, (_OUT, _IN), dtype=torch.uint8)
    zeros = torch.full(groups, 2.0 ** (_BITS - 1))
    return AffineWeight(codes, torch.full(groups, 0.01), zeros, _BITS, _GROUP)
