"""Fused experts with low-rank branches: only experts that are hit, never W + ΔW."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from quantlora.experts.autograd import experts_product
from quantlora.experts.branch import Branch
from quantlora.experts.call import ExpertCall
from quantlora.experts.layout import ExpertsLayout
from quantlora.experts.routing import by_index, by_position
from quantlora.formats.autocast import autocast_off, working_dtype
from quantlora.formats.expert_stack import ExpertStack
from quantlora.formats.offloaded import is_offloaded, onloaded
from quantlora.formats.transforms import transformed


@torch.compiler.disable  # type: ignore[untyped-decorator]
def routed_experts(
    module: nn.Module,
    layout: ExpertsLayout,
    hidden: Tensor,
    index: Tensor | None = None,
    weights: Tensor | None = None,
    *,
    path: str = "experts",
    branches: Sequence[Branch] = (),
    groups: Tensor | None = None,
) -> Tensor:
    """What ``module`` computes, and the branches beside its two products.

    Args:
        hidden: ``(tokens, hidden)``; of a layout that is not routed, sorted by expert.
        index, weights: top-k ``(tokens, k)``.
        groups: the sub-batch of each token ``(tokens,)``, where branches have one.
    """
    rows = hidden.reshape(-1, hidden.shape[-1])
    with onloaded(module), autocast_off(hidden):
        dtype = working_dtype(hidden, _asked_dtype(module, layout) or hidden.dtype)
        call = ExpertCall(module, layout, path, branches, dtype)
        if index is None:
            routing = by_position(rows, call.experts, groups)
        else:
            routing = by_index(index.reshape(-1, index.shape[-1]), call.experts, groups)
        flat = None if weights is None else weights.reshape(-1)
        trained = torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters())
        if trained or transformed():
            return call.plain(rows, flat, routing, call.factors).view(hidden.shape)
        if is_offloaded(module):
            call.seen = None
        return experts_product(call, rows, flat, routing).view(hidden.shape)


def _asked_dtype(module: nn.Module, layout: ExpertsLayout) -> torch.dtype | None:
    """What a packed format wants products taken in."""
    stacks = (getattr(module, name) for name in layout.names)
    asked = (stack.compute_dtype for stack in stacks if isinstance(stack, ExpertStack))
    return next((dtype for dtype in asked if dtype is not None), None)
