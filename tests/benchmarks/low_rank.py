"""The low-rank step, all candidates side by side in one run.

    python tests/benchmarks/low_rank.py [--size 4096] [--ranks 16 64] [--bits 4] [--repeats 3]

The matrix is what quantization leaves of a normal weight: its spectrum is flat, the hard case. The
captured energy is judged against the eigenvalues of RᵀR in float64. Times are the best of the
repeats; the full SVD runs once.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import scipy.sparse.linalg
import torch
from quantlora_loftq import low_rank
from quantlora_normalfloat import NormalFloatQuantizer
from torch import Tensor

import quantlora


def residual(size: int, bits: int) -> Tensor:
    torch.manual_seed(0)
    weight = torch.randn(size, size)
    layer = NormalFloatQuantizer().quantize(quantlora.linear_from(weight), bits=bits)
    return weight - layer.dequantize()


def candidates(matrix: Tensor, r: int) -> dict[str, Callable[[], Tensor]]:
    """What gives the ``r`` largest singular values, by name; all of them compute vectors too."""
    return {
        "quantlora krylov": lambda: low_rank(matrix, r).sigma,
        "scipy svds": lambda: torch.from_numpy(
            scipy.sparse.linalg.svds(matrix.numpy(), k=r)[1].copy()
        ),
        "svd_lowrank q=r niter=2": lambda: torch.svd_lowrank(matrix, q=r, niter=2)[1],
        "svd_lowrank q=2r niter=8": lambda: torch.svd_lowrank(matrix, q=2 * r, niter=8)[1][:r],
    }


def timed(work: Callable[[], Tensor], repeats: int) -> tuple[float, Tensor]:
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        found = work()
        best = min(best, time.perf_counter() - begin)
    return best, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--ranks", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    matrix = residual(given.size, given.bits)
    squares = torch.linalg.eigvalsh(matrix.double().t() @ matrix.double()).flip(0)
    full, _ = timed(lambda: torch.linalg.svd(matrix, full_matrices=False)[1], 1)
    print(f"{given.size} x {given.size}, NF{given.bits}, {torch.get_num_threads()} threads")
    print(f"full SVD: {full:.2f} s\n")
    print(f"{'r':>4}  {'method':26} {'s':>8} {'times':>7} {'energy':>9} {'error':>10}")
    for r in given.ranks:
        best, total = squares[:r].sum(), squares.sum()
        for name, work in candidates(matrix, r).items():
            seconds, sigma = timed(work, given.repeats)
            energy = sigma.double().square().sum()
            error = ((total - energy) / (total - best)).sqrt()
            shown = f"{seconds:8.3f} {full / seconds:7.1f} {energy / best:9.5f} {error:10.6f}"
            print(f"{r:>4}  {name:26} {shown}")


if __name__ == "__main__":
    main()
