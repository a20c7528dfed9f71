"""Packing against a stream of bits written by numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from quantlora import pack_bits, unpack_bits

widths = st.integers(1, 8)
counts = st.integers(1, 70)
dtypes = st.sampled_from([torch.uint8, torch.int16, torch.int32])


def some_codes(bits: int, rows: int, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(bits * count)
    return torch.randint(0, 2**bits, (rows, count), generator=generator, dtype=torch.uint8)


def stream(codes: torch.Tensor, bits: int) -> np.ndarray:
    """The bytes of each row, by numpy alone."""
    single = (codes.numpy()[:, :, None] >> np.arange(bits, dtype=np.uint8)) & 1
    return np.packbits(single.reshape(len(codes), -1), axis=1, bitorder="little")


@given(widths, st.integers(1, 3), counts, dtypes)
def test_unpack_inverts_pack(bits: int, rows: int, count: int, dtype: torch.dtype) -> None:
    codes = some_codes(bits, rows, count)
    assert torch.equal(unpack_bits(pack_bits(codes, bits, dtype), bits, count), codes)


@given(widths, st.integers(1, 3), counts, dtypes)
def test_the_words_are_one_stream_of_bits(
    bits: int, rows: int, count: int, dtype: torch.dtype
) -> None:
    codes = some_codes(bits, rows, count)
    octets, wanted = pack_bits(codes, bits, dtype).view(torch.uint8), stream(codes, bits)
    assert octets.shape[1] - wanted.shape[1] < dtype.itemsize
    assert not octets[:, wanted.shape[1] :].any()
    assert torch.equal(octets[:, : wanted.shape[1]], torch.from_numpy(wanted))


@pytest.mark.parametrize("bits", range(1, 9))
def test_unpack_takes_words_of_any_layout(bits: int) -> None:
    words = pack_bits(some_codes(bits, 6, 64), bits)
    assert torch.equal(unpack_bits(words.t().contiguous().t(), bits), unpack_bits(words, bits))
