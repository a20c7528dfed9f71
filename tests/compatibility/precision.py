"""Whose own code computes in float32 in a float64 model: the reason of an error of 1e-07."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from quantlora.experts.layout import ExpertsLayout
from quantlora.exporting.model_outputs import outputs

#: Errors that rounding to float32 explains.
ROUNDING = 1e-5


class _Noting(TorchDispatchMode):
    """Whether a product or a sum of float32 came about."""

    found = False

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function.__name__.partition(".")[0]
        if name in ("index_add_", "add_", "mm", "addmm", "sum", "bmm"):
            self.found |= any(
                isinstance(leaf, Tensor) and leaf.dtype == torch.float32
                for leaf in tree_leaves(result)
            )
        return result


def float32_experts(plain: nn.Module, inputs: Any) -> list[str]:
    """Classes of fused experts in the float64 model ``plain`` that compute in float32 themselves.

    `LoraExperts` computes in the model's dtype, so its output is nearer to float64 than theirs.
    """
    found: dict[str, None] = {}
    for module in plain.modules():
        if ExpertsLayout.of(module) is not None and _in_float32(plain, module, inputs):
            found[type(module).__name__] = None
    return list(found)


def _in_float32(plain: nn.Module, module: nn.Module, inputs: Any) -> bool:
    mode, inner = _Noting(), module.forward

    def noted(*args: Any, **kwargs: Any) -> Any:
        with mode:
            return inner(*args, **kwargs)

    vars(module)["forward"] = noted
    try:
        outputs(plain, inputs)
    finally:
        del vars(module)["forward"]
    return mode.found
