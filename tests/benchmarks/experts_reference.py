"""Fused experts with LoRA in float64, the formulas written out: what each arm is checked with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.benchmarks import experts_arms
from tests.benchmarks.experts_arms import Inputs
from tests.benchmarks.reference import check

#: Of products in bfloat16.
LIMIT = 0.05
#: The factor that is alpha / r.
SCALING = 2.0


def error(name: str, model: nn.Module, given: Inputs) -> float:
    """The largest relative error among the output and the gradients of A, B and the inputs."""
    factors = experts_arms.factors(model)
    exact = [factor.detach().double().requires_grad_() for factor in factors]
    x = given[0].detach().double().requires_grad_()
    out = output(experts_arms.weights_of(model), exact, (x, given[1], given[2].double()))
    wanted = [out.detach(), *torch.autograd.grad(out.square().mean(), [x, *exact])]
    mine = given[0].detach().requires_grad_()
    found = model(mine, *given[1:])
    gradients = torch.autograd.grad(found.double().square().mean(), [mine, *factors])
    both = zip([found.detach(), *gradients], wanted, strict=True)
    return max(check(name, actual, expected, LIMIT) for actual, expected in both)


def output(weights: Sequence[Tensor], factors: Sequence[Tensor], given: Inputs) -> Tensor:
    """Σ over a token's experts e of its weight times ``down[e](silu(gate[e] x) * up[e] x)``."""
    x, index, routing = given
    out = torch.zeros_like(x)
    for expert in range(len(weights[0])):
        rows, slots = (index == expert).nonzero(as_tuple=True)
        gate, up = _product(x[rows], 0, expert, weights, factors).chunk(2, dim=-1)
        y = _product(F.silu(gate) * up, 1, expert, weights, factors)
        out = out.index_add(0, rows, y * routing[rows, slots, None])
    return out


def _product(
    x: Tensor, which: int, expert: int, weights: Sequence[Tensor], factors: Sequence[Tensor]
) -> Tensor:
    """``x · W[e]ᵀ + s · x · A[e]ᵀ · B[e]ᵀ``; in files A is (e r, in), and B is (out, r e)."""
    y = x @ weights[which][expert].t()
    if not factors:
        return y
    A, B = factors[2 * which : 2 * which + 2]
    experts = len(weights[which])
    a, b = A.view(experts, -1, A.shape[1])[expert], B.view(len(B), -1, experts)[:, :, expert]
    return y + SCALING * (x @ a.t() @ b.t())
