"""What a mark tells of a tensor: written to, other values by ``.data``, or nothing."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest
import torch
from torch import Tensor, nn

from quantlora.formats.tensor_mark import TensorMark

DTYPES = [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.uint8]


def tensor(dtype: torch.dtype = torch.float32, *size: int) -> Tensor:
    return torch.arange(1, 1 + torch.Size(size or (40, 5)).numel()).view(size or (40, 5)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(), (1,), (3, 2), (70, 50)], ids=str)
def test_other_values_are_told_and_the_same_are_not(
    size: tuple[int, ...], dtype: torch.dtype
) -> None:
    one = tensor(dtype, *size)
    mark = TensorMark(one)
    one.data = one.data.clone()
    assert not mark.was_assigned(one)
    one.data = torch.zeros_like(one)
    assert mark.was_assigned(one)
    assert not mark.was_written(one)


def test_nan_is_the_same_as_itself() -> None:
    one = torch.full((4,), float("nan"))
    mark = TensorMark(one)
    one.data = one.data.clone()
    assert not mark.was_assigned(one)


@pytest.mark.parametrize("other", [torch.empty(0), torch.zeros(40, 5).double(), torch.zeros(3)])
def test_what_was_released_or_converted_is_not_told(other: Tensor) -> None:
    one = tensor()
    mark = TensorMark(one)
    one.data = other
    assert not mark.was_assigned(one)
    assert not mark.is_still(one)


def test_a_column_of_a_matrix_is_known_by_its_storage_alone() -> None:
    one = tensor()[:, 1]
    mark = TensorMark(one)
    assert mark.is_still(one)
    one.data = one.data.clone()
    assert not mark.is_still(one)
    assert not mark.was_assigned(one)


def test_memory_that_is_used_again_is_other_memory() -> None:
    one = tensor()
    mark = TensorMark(one)
    for _ in range(20):  # an allocator gives freed addresses again
        one.data = one.data.clone()
        gc.collect()
        assert not mark.is_still(one)


def test_a_mark_holds_no_memory() -> None:
    one = nn.Parameter(torch.zeros(10**6))
    mark = TensorMark(one)
    storage = mark._storage
    del one
    assert storage is not None
    assert storage() is None


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_a_copy_knows_nothing(again: object) -> None:
    one = tensor()
    mark = again(TensorMark(one))  # type: ignore[operator]
    assert not mark.is_still(one)
    assert not mark.was_assigned(one)
