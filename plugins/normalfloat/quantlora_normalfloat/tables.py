"""The levels a code stands for."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from quantlora_normalfloat.requires import SCIPY

BITS = (2, 3, 4, 8)
#: "nf": quantiles of the normal distribution. "uniform": equal steps with a zero-point.
QUANT_TYPES = ("nf", "uniform")

#: The outermost quantile: the mean of 1 - 1/32 and 1 - 1/30, as for 4 bits in QLoRA
#: (arXiv:2305.14314, appendix E). LoftQ keeps it for every width, and so do we.
OUTERMOST = 0.9677083


def level_table(bits: int, quant_type: str = "nf") -> Tensor:
    """The ``2 ** bits`` levels in float32, ascending; a weight is ``level[code] * scale``.

    "nf": normal quantiles within [-1, 1], with an exact 0 and one level more above it than
    below (QLoRA, arXiv:2305.14314; LoftQ, arXiv:2310.08659, section 3). "uniform": 0, 1, 2, ...
    """
    if quant_type == "uniform":
        return torch.arange(2**bits, dtype=torch.float32)
    return torch.tensor(_normal_levels(bits), dtype=torch.float32)


@cache
def _normal_levels(bits: int) -> tuple[float, ...]:
    SCIPY.check().require()
    from scipy.stats import norm

    half = 2 ** (bits - 1)
    above = norm.ppf(_line(OUTERMOST, 0.5, half + 1))
    below = -norm.ppf(_line(OUTERMOST, 0.5, half))
    levels = sorted([*below, 0.0, *above])
    return tuple(float(level / levels[-1]) for level in levels)


def _line(first: float, last: float, points: int) -> list[float]:
    """``points`` equally spaced numbers without the last one."""
    step = (last - first) / (points - 1)
    return [first + step * i for i in range(points - 1)]
