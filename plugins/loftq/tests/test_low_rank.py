"""The low-rank step, judged by the energy it captures, against float64 SVDs."""

import sys

import pytest
import torch
from hypothesis import given, settings, strategies as st
from quantlora_loftq import low_rank
from quantlora_normalfloat import NormalFloatQuantizer

import quantlora

RANKS = (8, 16, 64)
#: The function has the module's name.
MODULE = sys.modules[low_rank.__module__]


@pytest.fixture(scope="module", params=[2, 4])
def residual(request):
    """What quantization leaves of a normal weight: a flat spectrum, the hard case."""
    torch.manual_seed(0)
    weight = torch.randn(768, 1024)
    layer = NormalFloatQuantizer().quantize(quantlora.linear_from(weight), bits=request.param)
    return weight - layer.dequantize()


@pytest.fixture(scope="module")
def squares(residual):
    return torch.linalg.svdvals(residual.double()).square()


@pytest.mark.parametrize("r", RANKS)
def test_krylov_captures_the_energy_of_a_full_svd_to_a_percent(residual, squares, r):
    assert low_rank(residual, r).energy >= 0.99 * squares[:r].sum()


@pytest.mark.parametrize("r", RANKS)
def test_the_error_is_within_1e4_of_the_optimum(residual, squares, r):
    best = squares[r:].sum().sqrt()
    assert (residual - product(low_rank(residual, r))).norm() <= 1.0001 * best


def cut(x):
    """bfloat16 by cutting off, as no IEEE mode does it."""
    return (x.contiguous().view(torch.int32) & ~0xFFFF).view(torch.float32)


def in_tiles(width, rounded):
    """Products of bfloat16 whose sums are rounded after each ``width`` of them."""

    def product(coarse, block):
        a, b = coarse.float(), block.to(coarse.dtype).float()
        total = torch.zeros(a.shape[0], b.shape[1])
        for left, right in zip(a.split(width, 1), b.split(width), strict=True):
            total = rounded(total + rounded(left @ right))
        return total

    return product


#: From what AVX512 and AMX do to what no hardware would.
ROUNDINGS = {
    "native": MODULE._product,
    "in tiles": in_tiles(32, lambda x: x.bfloat16().float()),
    "cut in tiles": in_tiles(32, cut),
    "cut in short tiles": in_tiles(8, cut),
}


@pytest.fixture(params=[*ROUNDINGS, "no bfloat16"])
def hardware(request, monkeypatch):
    monkeypatch.setattr(MODULE, "_rounds", lambda matrix: request.param in ROUNDINGS)
    full = MODULE._product
    chosen = ROUNDINGS.get(request.param, full)
    rounds = lambda coarse, block: (full, chosen)[coarse.dtype == torch.bfloat16](coarse, block)  # noqa: E731
    monkeypatch.setattr(MODULE, "_product", rounds)


@pytest.mark.usefixtures("hardware")
@pytest.mark.parametrize("r", [8, 64])
def test_however_the_hardware_rounds_the_error_is_the_optimum(residual, squares, r):
    best = squares[r:].sum().sqrt()
    assert (residual - product(low_rank(residual, r))).norm() <= 1.0001 * best


@pytest.mark.parametrize("flag", [True, False])
def test_within_a_loop_the_hardware_makes_no_difference(residual, monkeypatch, flag):
    plain = low_rank(residual, 8, in_a_loop=True)
    monkeypatch.setattr(MODULE, "multiplies_bfloat16", lambda device: flag)
    assert torch.equal(low_rank(residual, 8, in_a_loop=True).U, plain.U)


@pytest.mark.parametrize("size", [1e-42, 1e-30, 1e-10, 1e10, 1e30, 3e37])
def test_a_matrix_of_any_size_is_served_alike(residual, squares, size):
    found = low_rank(residual * size, 8)
    assert torch.isfinite(found.U).all()
    energy = (found.sigma.double() / size).square().sum()
    lost = 0.02 if size < 1e-38 else 0.01  # denormals have few bits
    assert energy >= (1 - lost) * squares[:8].sum()


@pytest.mark.parametrize("method", ["krylov", "exact"])
def test_energy_is_what_the_error_lacks(residual, method):
    found = low_rank(residual, 16, method=method)
    rest = (residual - product(found)).double().square().sum()
    total = residual.double().square().sum()
    assert float(total - rest) == pytest.approx(found.energy, rel=1e-3)


@pytest.mark.parametrize("r", RANKS)
def test_a_few_passes_of_a_randomized_svd_lose_a_tenth_where_krylov_does_not(residual, squares, r):
    torch.manual_seed(0)
    S = torch.svd_lowrank(residual, q=r, niter=2)[1]
    assert S.double().square().sum() < 0.92 * squares[:r].sum()


@pytest.mark.parametrize("scaling", [0.25, 1.0, 4.0])
def test_the_factors_times_the_scaling_are_the_product(residual, scaling):
    found = low_rank(residual, 8)
    A, B = found.factors(scaling)
    torch.testing.assert_close(scaling * B @ A, product(found))
    torch.testing.assert_close(A.norm(), B.norm())


def test_the_same_seed_gives_the_same_bits(residual):
    first, again, other = (low_rank(residual, 16, seed=seed).U for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_start_from_the_answer_ends_at_the_answer(residual, squares):
    first = low_rank(residual, 16)
    again = low_rank(residual, 16, start=first.V.t())
    assert again.energy >= first.energy * (1 - 1e-4)


@settings(deadline=None, max_examples=20)
@given(rank=st.integers(1, 12), seed=st.integers(0, 99))
def test_a_matrix_of_low_rank_is_found_whole(rank, seed):
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(n, rank, generator=generator) for n in (600, 700))
    matrix = left @ right.t()
    torch.testing.assert_close(product(low_rank(matrix, 12)), matrix, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("method", ["krylov", "exact"])
def test_nothing_left_gives_zeros_and_no_nan(method):
    found = low_rank(torch.zeros(600, 700), 8, method=method)
    assert all(torch.count_nonzero(factor) == 0 for factor in found.factors(2.0)[:1])
    assert all(torch.isfinite(factor).all() for factor in found.factors(2.0))


def test_float64_stays_float64(residual):
    assert low_rank(residual.double(), 4).U.dtype == torch.float64


@pytest.mark.parametrize(("r", "method"), [(0, "krylov"), (2000, "krylov"), (4, "svd")])
def test_a_rank_or_method_that_does_not_fit_is_an_error(residual, r, method):
    with pytest.raises(ValueError, match=r"rank|method"):
        low_rank(residual, r, method=method)


def product(found):
    A, B = found.factors()
    return B @ A
