"""LoftQ and its low-rank step against what they replace: full singular value decompositions."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from quantlora_loftq import low_rank
from quantlora_normalfloat import NormalFloatQuantizer
from torch import Tensor, nn

import quantlora
from tests.benchmarks.arms import Size
from tests.benchmarks.reference import WrongNumbersError
from tests.benchmarks.result import Result
from tests.benchmarks.timing import timing

ROUNDS = 5
#: How much further from the weight than the exact loop's result one may be.
LIMIT = 1e-3


def run(size: Size, device: str) -> Result:
    """``exact``: the same with `torch.linalg.svd`, once, for it takes minutes."""
    result = Result("LoftQ", "ms", "exact")
    side, r = size.hidden, min(64, size.hidden // 4)
    torch.manual_seed(0)
    weight = torch.randn(side, side, device=device) / side**0.5
    _add(result, f"{ROUNDS} rounds, {side} x {side}, r {size.r}, NF4", {
        "exact": partial(_exact_loop, weight, size.r),
        "quantlora": partial(_loftq, weight, size.r),
    }, weight)  # fmt: skip
    residual = weight - _packed(weight)
    _add(result, f"low-rank step, {side} x {side}, r {r}", {
        "exact": partial(_truncated, residual, r),
        "quantlora": partial(_krylov, residual, r),
    }, residual)  # fmt: skip
    return result


def _add(result: Result, case: str, work: dict[str, Callable[[], Tensor]], target: Tensor) -> None:
    seconds, errors = {}, {}
    for arm, call in work.items():
        begin = time.process_time()
        found = call().detach()
        seconds[arm] = time.process_time() - begin
        errors[arm] = float((target - found).double().norm() / target.double().norm())
    if not errors["quantlora"] < errors["exact"] * (1 + LIMIT):
        raise WrongNumbersError(f"{case}: {errors} from the weight")
    times = {arm: timing([own], [seconds["exact"]]) for arm, own in seconds.items()}
    result.add(case, times, errors)


def _packed(weight: Tensor) -> Tensor:
    return NormalFloatQuantizer().quantize(quantlora.linear_from(weight), bits=4).dequantize()


def _truncated(matrix: Tensor, r: int) -> Tensor:
    U, S, V = torch.linalg.svd(matrix, full_matrices=False)
    return (U[:, :r] * S[:r]) @ V[:r]


def _krylov(matrix: Tensor, r: int) -> Tensor:
    A, B = low_rank(matrix, r).factors()
    return B @ A


def _exact_loop(weight: Tensor, r: int) -> Tensor:
    """Algorithm 1 of arXiv:2310.08659 as it stands."""
    update = torch.zeros_like(weight)
    for _ in range(ROUNDS):
        packed = _packed(weight - update)
        update = _truncated(weight - packed, r)
    return packed + update


def _loftq(weight: Tensor, r: int) -> Tensor:
    model = nn.Sequential(quantlora.linear_from(weight))
    options: dict[str, Any] = {"loftq_bits": 4, "loftq_iter": ROUNDS}
    quantlora.wrap(
        model,
        backend="normalfloat",
        quantize_options={"bits": 4},
        r=r,
        lora_alpha=r,
        target_modules=["0"],
        init_lora_weights="loftq",
        loftq_config=options,
    )
    return model[0].updated("weight", ["default"]).float()  # type: ignore[operator, union-attr]
