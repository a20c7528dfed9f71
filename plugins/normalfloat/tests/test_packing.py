"""Packed codes: nothing lost, nothing wasted."""

import pytest
import torch
from hypothesis import given, strategies as st
from quantlora_normalfloat.packing import look_up, pack, packed_bytes, unpack
from quantlora_normalfloat.tables import BITS


@given(bits=st.sampled_from(BITS), count=st.integers(1, 300), seed=st.integers(0, 999))
def test_unpack_is_the_inverse_of_pack(bits, count, seed):
    codes = _codes(bits, count, seed)
    assert torch.equal(unpack(pack(codes, bits), bits, count), codes)


@pytest.mark.parametrize("bits", BITS)
def test_a_code_takes_its_bits_and_no_more(bits):
    stream = pack(_codes(bits, 4096, 0), bits)
    assert stream.dtype == torch.uint8
    assert stream.numel() == packed_bytes(4096, bits) == 4096 * bits // 8


@pytest.mark.parametrize("bits", BITS)
def test_look_up_gives_the_level_of_each_code(bits):
    codes, levels = _codes(bits, 1000, 1), torch.randn(2**bits)
    assert torch.equal(look_up(pack(codes, bits), levels, 1000), levels[codes.long()])


@pytest.mark.parametrize("bits", BITS)
def test_the_stream_is_little_end_first(bits):
    codes = _codes(bits, 8, 2)
    number = int.from_bytes(bytes(pack(codes, bits).tolist()), "little")
    assert [(number >> bits * i) % 2**bits for i in range(8)] == codes.tolist()


def _codes(bits, count, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2**bits, (count,), dtype=torch.uint8, generator=generator)
