"""The backward of fused experts: matrices are unpacked again, the gate is computed again.

Kept are the hidden states, the routing, what the first product gave (the gate's input) and the
rank-r products; no gathered rows, no activation, no weight. The gradient of a routing weight is
``g · y``; y is not kept, for where no norm follows it equals ``(g · W₂) · h``, which backward has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from quantlora.experts.branch import dropped
from quantlora.experts.call import ExpertCall
from quantlora.experts.layout import bias_of, gated, norm_of
from quantlora.experts.routing import Hit, Routing
from quantlora.formats.autocast import autocast_off
from quantlora.formats.offloaded import onloaded


def experts_product(
    call: ExpertCall, rows: Tensor, weights: Tensor | None, routing: Routing
) -> Tensor:
    """What ``call.plain`` gives for a frozen module."""
    inputs = (rows, weights, *call.factors)
    wanted = any(tensor is not None and tensor.requires_grad for tensor in inputs)
    keep = torch.is_grad_enabled() and wanted
    out: Tensor = _Experts.apply(call, routing, keep, *inputs)  # type: ignore[no-untyped-call]
    return out


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        call: ExpertCall,
        routing: Routing,
        keep: bool,
        rows: Tensor,
        weights: Tensor | None,
        *factors: Tensor,
    ) -> Tensor:
        layout = call.layout
        wide = torch.promote_types(rows.dtype, torch.float32)
        out = rows.new_zeros(rows.shape, dtype=wide)
        inner = _room(call, routing, rows) if keep else None
        first: list[Tensor] = []
        for hit in routing.hits:
            tokens = routing.tokens[hit.start : hit.stop]
            x = rows.index_select(0, tokens).to(call.dtype)
            z = call.product(x, hit, layout.up, factors, inner)
            y = call.product(gated(call.module, z), hit, layout.down, factors, inner)
            out.index_add_(0, tokens, call.weighted(y, weights, routing, hit).to(wide))
            if keep:
                first.append(z)
        if keep:
            ctx.call, ctx.routing = call, routing
            ctx.save_for_backward(rows, weights, *factors, *(inner or {}).values(), *first)
        return out.to(rows.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        call, routing, saved = ctx.call.as_seen(), ctx.routing, ctx.saved_tensors
        count = 2 * len(call.branches)
        rows, weights, factors = saved[0], saved[1], saved[2 : 2 + count]
        needs = ctx.needs_input_grad[3:]
        with autocast_off(grad), onloaded(call.module):
            if torch.is_grad_enabled():
                return (None, None, None, *_again(call, routing, rows, weights, factors, grad))
            inner = saved[2 + count : 2 + count + len(call.branches)]
            first = saved[2 + count + len(call.branches) :]
            back = _Backward(call, routing, rows, weights, factors, inner, needs)
            for hit, z in zip(routing.hits, first, strict=True):
                back.add(hit, z, grad)
        return (None, None, None, *back.gradients())


def _room(call: ExpertCall, routing: Routing, rows: Tensor) -> dict[int, Tensor]:
    """For each branch a place for its inner products, ``(routed, r)``."""
    return {
        i: rows.new_empty(routing.rows, branch.A.shape[1], dtype=branch.dtype)
        for i, branch in enumerate(call.branches)
    }


def _again(
    call: ExpertCall,
    routing: Routing,
    rows: Tensor,
    weights: Tensor | None,
    factors: Sequence[Tensor],
    grad: Tensor,
) -> tuple[Tensor | None, ...]:
    """A gradient that is to be differentiated once more: through torch's own operations."""
    inputs = (rows, weights, *factors)
    wanted = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
    out = call.plain(rows, weights, routing, factors)
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=True, allow_unused=True))
    return tuple(next(found) if o is not None and o.requires_grad else None for o in inputs)


class _Backward:
    """Collects the gradients over the experts that were hit."""

    def __init__(
        self,
        call: ExpertCall,
        routing: Routing,
        rows: Tensor,
        weights: Tensor | None,
        factors: Sequence[Tensor],
        inner: Sequence[Tensor],
        needs: Sequence[bool],
    ) -> None:
        self.call, self.routing, self.rows, self.weights = call, routing, rows, weights
        self.factors, self.inner = factors, inner
        self.module = call.module
        wide = torch.promote_types(rows.dtype, torch.float32)
        self.of_rows = torch.zeros_like(rows, dtype=wide) if needs[0] else None
        self.of_weights = torch.zeros_like(weights) if needs[1] and weights is not None else None
        self.of_factors = [
            torch.zeros_like(factor, memory_format=torch.contiguous_format) if need else None
            for factor, need in zip(factors, needs[2:], strict=True)
        ]

    def add(self, hit: Hit, z: Tensor, grad: Tensor) -> None:
        """The gradients by way of one expert, whose first product gave ``z``."""
        call, layout = self.call, self.call.layout
        tokens = self.routing.tokens[hit.start : hit.stop]
        g = grad.index_select(0, tokens).to(call.dtype)
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            h = gated(self.module, z)
        of_h = self._second(hit, h.detach(), g)
        (of_z,) = torch.autograd.grad(h, z, of_h)
        x = self.rows.index_select(0, tokens).to(call.dtype)
        of_x = self._through(hit, layout.up, x, of_z, None, self.of_rows is not None)
        if self.of_rows is not None:
            self.of_rows.index_add_(0, tokens, of_x.to(self.of_rows.dtype))

    def _second(self, hit: Hit, h: Tensor, g: Tensor) -> Tensor:
        """Through routing weights, norm and second product; the gradient of ``h``."""
        slots = self.routing.slots[hit.start : hit.stop]
        weight = None if self.weights is None else self.weights[slots, None]
        name, norm = self.call.layout.down, norm_of(self.module)
        if norm is not None:
            g = self._through_norm(hit, h, g, norm, weight, slots)
            return self._through(hit, name, h, g, None, True)
        of_h = self._through(hit, name, h, g, weight, True)
        if self.of_weights is not None:
            found = (of_h.to(self._wide) * h.to(self._wide)).sum(-1)
            bias = bias_of(self.module, name)
            if bias is not None:
                found = found + g.to(self._wide) @ bias[hit.expert].to(self._wide)
            self.of_weights[slots] = found.to(self.of_weights.dtype)
        return of_h if weight is None else (of_h * weight).to(of_h.dtype)

    def _through_norm(
        self, hit: Hit, h: Tensor, g: Tensor, norm: nn.Module, weight: Any, slots: Tensor
    ) -> Tensor:
        y = self.call.product(h, hit, self.call.layout.down, self.factors)
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            normed = norm(y)
        if self.of_weights is not None:
            found = (g.to(self._wide) * normed.detach().to(self._wide)).sum(-1)
            self.of_weights[slots] = found.to(self.of_weights.dtype)
        weighted = g if weight is None else g * weight
        (of_y,) = torch.autograd.grad(normed, y, weighted.to(normed.dtype))
        return of_y

    def _through(
        self, hit: Hit, name: str, x: Tensor, g: Tensor, weight: Tensor | None, need: bool
    ) -> Tensor:
        """The gradient of ``x``, the input of a product, for ``g`` of its output.

        Args:
            weight: g is still to be multiplied by it ``(rows, 1)``: done for the factors here, for
                the gradient of x by the caller.
            need: whether the gradient of x is wanted; else what comes back is of no use.
        """
        call, expert = self.call, hit.expert
        of_x = g @ call.matrix(name, expert) if need else torch.zeros_like(x)
        for i, branch, (start, stop) in call.beside(name, hit):
            A, B = (factor[expert].to(branch.dtype) for factor in self.factors[2 * i : 2 * i + 2])
            branch_grad = g[start:stop].to(branch.dtype)
            of_inner = branch_grad @ B * branch.scaling
            factor = 1 if weight is None else weight[start:stop].to(branch.dtype)
            seed = call.seed + i * call.experts + expert
            if need:
                of_part = dropped(of_inner @ A, branch.dropout, seed).to(of_x.dtype)
                of_x[start:stop] += of_part
            dropped_x = dropped(x[start:stop], branch.dropout, seed).to(branch.dtype)
            inner = self.inner[i][hit.start + start : hit.start + stop]
            self._add(2 * i, expert, (of_inner * factor).t() @ dropped_x)
            self._add(2 * i + 1, expert, (branch_grad * factor).t() @ inner)
        return of_x

    def _add(self, i: int, expert: int, found: Tensor) -> None:
        whole = self.of_factors[i]
        if whole is not None:
            whole[expert] += found.to(whole.dtype)

    @property
    def _wide(self) -> torch.dtype:
        return torch.promote_types(self.call.dtype, torch.float32)

    def gradients(self) -> tuple[Tensor | None, ...]:
        rows = None if self.of_rows is None else self.of_rows.to(self.rows.dtype)
        return (rows, self.of_weights, *self.of_factors)
