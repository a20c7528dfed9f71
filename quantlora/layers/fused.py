"""A frozen linear layer and its adapters as one product with one backward.

    y  = x · dequantize(Q)ᵀ + bias + Σ s · B(A(dropout(x)))
    ∂x = g · dequantize(Q) + Σ dropout(s · (g · B) · A)

What `frozen_linear` and `low_rank` compute one after the other, without the tensors of the output's
and the input's size in between: adapters are added into the fresh output, in backward into the
fresh ∂x. For backward x is kept as it came, where an A is trained (∂A is all that needs it), and
``s · A(x)`` of rank r; the weight is asked for again, a dropout mask is drawn again. A second
derivative goes through the plain products.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quantlora.formats.autocast import autocast_off
from quantlora.formats.transforms import transformed
from quantlora.layers.autograd import Weight, frozen_linear, low_rank
from quantlora.layers.dropout import SeededDropout

_PLAIN = (Tensor, nn.Parameter)


@dataclass(frozen=True)
class FrozenProduct:
    """The frozen layer's part of the output.

    Args:
        weight: gives ``(out_features, in_features)`` in ``dtype``; called again in backward.
        dtype: that of the product, and of the bias.
        output_dtype: that of the layer's output.
        dequantized: the same matrix, where the caller has it for the forward already.
    """

    weight: Weight
    dtype: torch.dtype
    output_dtype: torch.dtype
    dequantized: Tensor | None = None


@dataclass(frozen=True)
class Branch:
    """An adapter's part but for A and B: its scale, its products' dtype, its dropout."""

    scaling: float
    dtype: torch.dtype
    dropout: SeededDropout | None = None

    @property
    def scale(self) -> float:
        """With that of the dropout."""
        return self.scaling * (1.0 if self.dropout is None else self.dropout.scale)


def can_fuse(*tensors: Tensor | None) -> bool:
    """Whether ``tensors`` are plain, and nobody traces: a compiler fuses the plain products."""
    if torch.compiler.is_compiling() or transformed():
        return False
    return all(tensor is None or type(tensor) in _PLAIN for tensor in tensors)


def adapted_linear(
    x: Tensor,
    bias: Tensor | None,
    frozen: FrozenProduct,
    adapters: Sequence[tuple[Branch, Tensor, Tensor]],
    keeps_input: bool = True,
) -> Tensor:
    """The layer's output ``(..., out_features)``, in memory of its own.

    Args:
        x: ``(..., in_features)``, of any floating dtype.
        bias: ``(out_features,)``.
        adapters: branch, A ``(r, in_features)`` and B ``(out_features, r)`` of each.
        keeps_input: whether x is kept for backward also where no A is trained (LoRA-FA): for
            `output_again` and for second derivatives.
    """
    branches = [branch for branch, _, _ in adapters]
    factors = [factor for _, A, B in adapters for factor in (A, B)]
    y: Tensor = _Adapted.apply(  # type: ignore[no-untyped-call]
        x, bias, frozen, (branches, keeps_input), *factors
    )
    return y


class _Adapted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        bias: Tensor | None,
        frozen: FrozenProduct,
        chosen: tuple[Sequence[Branch], bool],
        *factors: Tensor,
    ) -> Tensor:
        branches, keeps_input = chosen
        with autocast_off(x):
            y = _frozen_output(x, bias, frozen)
            hidden = [
                _add_adapter(_rows(y), x, branch, A, B)
                for branch, A, B in _paired(branches, factors)
            ]
        ctx.frozen, ctx.branches = frozen, branches
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.shape, ctx.dtype = x.shape, x.dtype
        is_kept = keeps_input or any(ctx.needs_input_grad[4::2])
        ctx.save_for_backward(x if is_kept else None, *factors, *hidden)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with autocast_off(grad):
            gradients = (_again if torch.is_grad_enabled() else _gradients)(ctx, grad)
            bias = None
            if ctx.needs_input_grad[1]:
                bias = _rows(grad).sum(0, dtype=torch.float32 if grad.itemsize < 4 else None)
                bias = bias.to(ctx.bias_dtype)
        return gradients[0], bias, None, None, *gradients[1:]


def _frozen_output(x: Tensor, bias: Tensor | None, frozen: FrozenProduct) -> Tensor:
    """``x · Wᵀ + bias`` in new memory: a tensor that is no view, which others may change."""
    weight = frozen.dequantized
    weight = frozen.weight(frozen.dtype) if weight is None else weight.to(frozen.dtype)
    y = torch.empty((*x.shape[:-1], weight.shape[0]), dtype=frozen.dtype, device=x.device)
    torch.mm(_rows(x).to(frozen.dtype), weight.t(), out=_rows(y))
    if bias is not None:
        y += bias.to(frozen.dtype)
    return y.to(frozen.output_dtype)


def _add_adapter(y: Tensor, x: Tensor, branch: Branch, A: Tensor, B: Tensor) -> Tensor:
    """Adds an adapter's part to ``y`` ``(N, out_features)``; returns ``s · A(x)`` ``(N, r)``."""
    h = (_input(x, branch) @ A.to(branch.dtype).t()).mul_(branch.scale)
    _add_product(y, h, B.to(branch.dtype).t())
    return h


@torch.no_grad()
def output_again(node: Any) -> Tensor:
    """What `adapted_linear` gave, without a bias, from its ``grad_fn`` before backward."""
    x, *saved = node.saved_tensors
    with autocast_off(x):
        y = _frozen_output(x, None, node.frozen)
        for branch, A, B in _paired(node.branches, saved[: 2 * len(node.branches)]):
            _add_adapter(_rows(y), x, branch, A, B)
    return y


def _gradients(ctx: Any, grad: Tensor) -> list[Tensor | None]:
    """Of x and of each A and B."""
    x, *saved = ctx.saved_tensors
    count = 2 * len(ctx.branches)
    needs_x, needs = ctx.needs_input_grad[0], ctx.needs_input_grad[4:]
    grad_x, g = None, _rows(grad)
    if needs_x:
        grad_x = (g.to(ctx.frozen.dtype) @ ctx.frozen.weight(ctx.frozen.dtype)).to(ctx.dtype)
    found: list[Tensor | None] = []
    for (branch, A, B), h in zip(_paired(ctx.branches, saved[:count]), saved[count:], strict=True):
        own = g.to(branch.dtype)
        gh = (own @ B.to(branch.dtype)).mul_(branch.scale)
        if grad_x is not None:
            _add_input_gradient(grad_x, gh, A.to(branch.dtype), branch)
        needs_A, needs_B = needs[len(found) : len(found) + 2]
        found.append((gh.t() @ _input(x, branch)).to(A.dtype) if needs_A else None)
        found.append((own.t() @ h).to(B.dtype) if needs_B else None)
    return [None if grad_x is None else grad_x.view(ctx.shape), *found]


def _add_input_gradient(grad_x: Tensor, gh: Tensor, A: Tensor, branch: Branch) -> None:
    if branch.dropout is None:
        _add_product(grad_x, gh, A)
    else:
        grad_x += branch.dropout(gh @ A)


def _again(ctx: Any, grad: Tensor) -> list[Tensor | None]:
    """The same with a graph of its own, for a backward through this one."""
    x, *saved = ctx.saved_tensors
    if x is None:
        raise RuntimeError(
            "there is no second derivative where no A is trained: the input is not kept. "
            "Train A, or use torch.func."
        )
    factors = saved[: 2 * len(ctx.branches)]
    needs = (ctx.needs_input_grad[0], *ctx.needs_input_grad[4:])
    with torch.enable_grad():
        y = frozen_linear(x.to(ctx.frozen.dtype), ctx.frozen.weight).to(ctx.frozen.output_dtype)
        for branch, A, B in _paired(ctx.branches, factors):
            given = x.to(branch.dtype)
            if branch.dropout is not None:
                given = given * branch.dropout(torch.ones_like(given))
            y = y + low_rank(given, A, B, branch.scale, branch.dtype).to(y.dtype)
    wanted = [given for given, need in zip((x, *factors), needs, strict=True) if need]
    found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True, allow_unused=True))
    return [next(found) if need else None for need in needs]


def _paired(
    branches: Sequence[Branch], factors: Sequence[Tensor]
) -> Iterator[tuple[Branch, Tensor, Tensor]]:
    return zip(branches, factors[::2], factors[1::2], strict=True)


def _input(x: Tensor, branch: Branch) -> Tensor:
    """What A is given, ``(N, in_features)``."""
    rows = _rows(x).to(branch.dtype)
    return rows if branch.dropout is None else branch.dropout(rows)


def _add_product(y: Tensor, left: Tensor, right: Tensor) -> None:
    """``left · right`` added to ``y`` in place, rounded once where they are of one dtype."""
    if y.dtype == left.dtype:
        y.addmm_(left, right)
    else:
        y += left @ right


def _rows(x: Tensor) -> Tensor:
    """(..., n) as (N, n), also for n = 0; a view of what is contiguous."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
