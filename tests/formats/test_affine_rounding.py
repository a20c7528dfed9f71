"""Rounding to a grid: nearest, on the asked grid, and nothing lost where nothing need be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from quantlora import fit_affine, refit_affine

BITS = (2, 3, 4, 8)


def weight(rows: int = 6, columns: int = 64) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("sym", [True, False])
def test_no_value_errs_by_more_than_half_a_step(bits: int, sym: bool) -> None:
    found = fit_affine(weight(), bits, 16, sym=sym, dtype=torch.float32)
    error = (found.dequantize() - weight()).abs() / found.by_input(found.scales)
    assert error.max() <= (1.0001 if sym else 0.5001)  # the range of sym lacks its upper end


def test_zero_points_are_integers_of_the_asked_range() -> None:
    found = fit_affine(weight() + 3, 4, 16, lowest_zero=1)
    assert torch.equal(found.zeros, found.zeros.round())
    assert found.zeros.min() >= 1
    assert found.codes.max() <= 15


@pytest.mark.parametrize("bits", BITS)
def test_a_weight_on_the_grid_stays_as_it_is(bits: int) -> None:
    grid = fit_affine(weight(), bits, 32)
    assert torch.equal(refit_affine(grid.dequantize(), grid).dequantize(), grid.dequantize())


@pytest.mark.parametrize("bits", BITS)
def test_an_update_of_whole_steps_moves_into_the_zero_points(bits: int) -> None:
    grid = fit_affine(weight(), bits, 32, dtype=torch.float32, lowest_zero=1)
    zeros = (grid.zeros + torch.randint(-1, 2, grid.zeros.shape)).clamp(0, 2**bits - 1)
    wanted = replace(grid, zeros=zeros).dequantize()
    assert torch.equal(refit_affine(wanted, grid).dequantize(), wanted)


def test_groups_that_are_not_neighbours_are_kept() -> None:
    index = torch.arange(64) % 4
    grid = fit_affine(weight(), 4, 16, group_index=index, dtype=torch.float32)
    assert torch.equal(grid.group_index, index)
    low = torch.stack([weight()[:, index == g].amin(1) for g in range(4)], 1)
    assert torch.allclose((0 - grid.zeros) * grid.scales, low, atol=float(grid.scales.max()))
