"""Packing against a stream of bits written by numpy."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies as st
from quantlora_gptq.packing import BITS, pack, unpack

from .gptq_checkpoint import packed_rows

widths = st.sampled_from(BITS)
sizes = st.integers(1, 5)


def _codes(bits: int, rows: int, blocks: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2**bits, (rows, 32 * blocks), generator=generator, dtype=torch.uint8)


@given(widths, sizes, sizes, st.integers(0, 99))
def test_unpack_inverts_pack(bits: int, rows: int, blocks: int, seed: int) -> None:
    codes = _codes(bits, rows, blocks, seed)
    assert torch.equal(unpack(pack(codes, bits), bits), codes)


@given(widths, sizes, sizes, st.integers(0, 99))
def test_pack_writes_the_stream_that_checkpoints_hold(
    bits: int, rows: int, blocks: int, seed: int
) -> None:
    codes = _codes(bits, rows, blocks, seed)
    assert torch.equal(pack(codes, bits), packed_rows(codes.t(), bits).t())


@pytest.mark.parametrize("bits", BITS)
def test_unpack_takes_words_of_any_layout(bits: int) -> None:
    words = pack(_codes(bits, 6, 2, 0), bits)
    assert torch.equal(unpack(words.t().contiguous().t(), bits), unpack(words, bits))
