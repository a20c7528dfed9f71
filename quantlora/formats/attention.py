"""`nn.MultiheadAttention`: two layers in one module, whose weights it multiplies by itself."""

from __future__ import annotations

from torch import nn

#: The parameter that holds the projections of query, key and value, one above the other.
IN_PROJ = "in_proj_weight"
#: The layer behind it.
OUT_PROJ = "out_proj"
_SEPARATE = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


def is_attention(module: nn.Module) -> bool:
    return isinstance(module, nn.MultiheadAttention)


def separate_weights(attention: nn.Module) -> tuple[str, ...]:
    """Names of the projections where each has its own parameter (``kdim``, ``vdim``)."""
    return _SEPARATE if attention._parameters.get(IN_PROJ) is None else ()
