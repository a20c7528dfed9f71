"""`ExpertCall`: one call of fused experts, and its products, one expert at a time.

    h = gate(x · W₁[e]ᵀ + b₁[e] + Σ s · B₁[e](A₁[e] x))
    y = norm(h · W₂[e]ᵀ + b₂[e] + Σ s · B₂[e](A₂[e] h))        out[token] += weight · y

The rows of an expert are gathered, its matrices unpacked, used and freed; W + ΔW is never made.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantlora.experts.branch import Branch, dropped
from quantlora.experts.layout import ExpertsLayout, bias_of, gated, norm_of
from quantlora.experts.routing import Hit, Routing
from quantlora.formats.expert_stack import ExpertStack
from quantlora.formats.seen import Seen


class ExpertCall:
    """One call of a module of fused experts.

    Args:
        module: the frozen experts, float or packed.
        path: its place, for messages.
        branches: the adapters' products.
        dtype: what products are taken in.
    """

    def __init__(
        self,
        module: nn.Module,
        layout: ExpertsLayout,
        path: str,
        branches: Sequence[Branch],
        dtype: torch.dtype,
    ) -> None:
        self.module, self.layout, self.branches, self.dtype = module, layout, branches, dtype
        drops = any(branch.dropout for branch in branches)
        self.seed = int(torch.randint(2**40, ())) if drops else 0
        self.seen = Seen(module, path) if torch.is_grad_enabled() else None

    def as_seen(self) -> ExpertCall:
        """This call for its backward: with the tensors that the module had in forward."""
        again = copy(self)
        if self.seen is not None:
            again.module = self.seen.layer(self.module)
        return again

    @property
    def factors(self) -> list[Tensor]:
        """A and B of each branch, one after the other."""
        return [factor for branch in self.branches for factor in (branch.A, branch.B)]

    def plain(
        self, rows: Tensor, weights: Tensor | None, routing: Routing, factors: Sequence[Tensor]
    ) -> Tensor:
        """In operations that torch knows all rules for."""
        outputs = [rows.new_zeros(0, rows.shape[-1], dtype=self.dtype)]
        for hit in routing.hits:
            x = rows.index_select(0, routing.tokens[hit.start : hit.stop]).to(self.dtype)
            h = gated(self.module, self.product(x, hit, self.layout.up, factors))
            y = self.product(h, hit, self.layout.down, factors)
            outputs.append(self.weighted(y, weights, routing, hit))
        wide = torch.promote_types(rows.dtype, torch.float32)
        zero = rows.new_zeros(rows.shape, dtype=wide)
        return zero.index_add(0, routing.tokens, torch.cat([o.to(wide) for o in outputs])).to(
            rows.dtype
        )

    def weighted(self, y: Tensor, weights: Tensor | None, routing: Routing, hit: Hit) -> Tensor:
        """An expert's output behind its norm, times the routing weights."""
        norm = norm_of(self.module)
        y = y if norm is None else norm(y)
        return y if weights is None else y * weights[routing.slots[hit.start : hit.stop], None]

    def product(
        self,
        x: Tensor,
        hit: Hit,
        name: str,
        factors: Sequence[Tensor],
        kept: dict[int, Tensor] | None = None,
    ) -> Tensor:
        """``x · W[e]ᵀ + b[e]`` and the branches beside it; ``kept`` takes their inner products."""
        y = F.linear(x, self.matrix(name, hit.expert))
        bias = bias_of(self.module, name)
        y = y if bias is None else y + bias[hit.expert].to(y.dtype)
        for i, branch, (start, stop) in self.beside(name, hit):
            A, B = factors[2 * i : 2 * i + 2]
            h = branch.inner(self.dropped(x[start:stop], i, hit.expert), A, hit.expert)
            delta = branch.outer(h, B, hit.expert).to(y.dtype)
            whole = len(delta) == len(y)  # as always but in mixed batches
            y = y + (delta if whole else F.pad(delta, (0, 0, start, len(y) - stop)))
            if kept is not None:
                kept[i][hit.start + start : hit.start + stop] = h
        return y

    def beside(self, name: str, hit: Hit) -> list[tuple[int, Branch, tuple[int, int]]]:
        """The branches beside stack ``name`` that have rows of this expert, with their rows."""
        found = [
            (i, branch, hit.part(branch.group))
            for i, branch in enumerate(self.branches)
            if branch.name == name
        ]
        return [(i, branch, part) for i, branch, part in found if part[0] < part[1]]

    def dropped(self, x: Tensor, i: int, expert: int) -> Tensor:
        """``x`` after the dropout of branch i for that expert."""
        return dropped(x, self.branches[i].dropout, self.seed + i * self.experts + expert)

    def matrix(self, name: str, expert: int) -> Tensor:
        """``(out, in)`` of one expert, in the dtype that products are taken in."""
        stack: Any = getattr(self.module, name)
        if isinstance(stack, ExpertStack):
            return stack.dequantize([expert], self.dtype)[0]
        weight: Tensor = stack[expert].to(self.dtype)
        return weight.t() if self.layout.transposed else weight

    @property
    def experts(self) -> int:
        stack: Any = getattr(self.module, self.layout.up)
        return int(stack.shape[0])
