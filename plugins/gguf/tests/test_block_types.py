"""Every type of blocks, byte for byte against the package ``gguf``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from quantlora_gguf import BLOCK_TYPES, GgufLinear, GgufQuantizer
from torch import nn

gguf = pytest.importorskip("gguf")

NAMES = sorted(name for name in BLOCK_TYPES if hasattr(gguf.GGMLQuantizationType, name))
AFFINE = ("Q4_0", "Q4_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K")


def random_bytes(name: str, rows: int = 24, width: int = 512) -> np.ndarray:
    """Any bytes are blocks; those whose factors are no numbers occur too."""
    shape = (rows, BLOCK_TYPES[name].row_bytes(width))
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def layer_of(name: str, width: int = 512) -> GgufLinear:
    """A layer of random blocks with finite weights of ordinary size."""
    kind, packed = BLOCK_TYPES[name], torch.from_numpy(random_bytes(name, width=width))
    blocks = packed.view(-1, kind.nbytes)
    for start in {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2)}.get(name, (0, 2)):
        if (name, start) not in (("Q4_0", 2), ("Q8_0", 2)):
            blocks[:, start : start + 2] = torch.tensor([0.01]).half().view(torch.uint8)
    layer = GgufLinear(width, len(packed), False, block_type=name, device="meta")
    layer.weight = nn.Parameter(packed, requires_grad=False)
    return layer


@pytest.mark.parametrize("name", NAMES)
def test_sizes_and_numbers_are_the_packages(name):
    theirs, kind = gguf.GGMLQuantizationType[name], BLOCK_TYPES[name]
    assert int(theirs) == kind.number
    assert gguf.GGML_QUANT_SIZES[theirs] == (kind.elements, kind.nbytes)


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_the_packages_byte_for_byte(name):
    packed = random_bytes(name)
    with np.errstate(all="ignore"):
        wanted = gguf.dequantize(packed, gguf.GGMLQuantizationType[name]).astype(np.float32)
    found = BLOCK_TYPES[name].dequantize(torch.from_numpy(packed)).numpy()
    number = ~np.isnan(wanted)
    assert number.mean() > 0.8
    assert np.array_equal(found.view(np.uint32)[number], wanted.view(np.uint32)[number])
    assert np.isnan(found[~number]).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype):
    packed = torch.from_numpy(random_bytes("Q6_K"))
    kind = BLOCK_TYPES["Q6_K"]
    assert torch.equal(
        kind.dequantize(packed, dtype).nan_to_num(), kind.dequantize(packed).to(dtype).nan_to_num()
    )


def test_long_rows_are_unpacked_piece_by_piece_alike(monkeypatch):
    packed, kind = torch.from_numpy(random_bytes("Q4_K")), BLOCK_TYPES["Q4_K"]
    whole = kind.dequantize(packed)
    monkeypatch.setattr("quantlora_gguf.block_types._CHUNK", 1)
    assert torch.equal(kind.dequantize(packed).nan_to_num(), whole.nan_to_num())


@pytest.mark.parametrize("name", AFFINE)
def test_codes_scales_and_zero_points_are_the_same_weight(name):
    layer = layer_of(name)
    grid = GgufQuantizer().affine(layer)
    exact = layer.dequantize().double()
    error = (grid.dequantize().double() - exact).abs().max() / exact.abs().max()
    assert error < 1e-6
    assert int(grid.codes.max()) < 2**grid.bits
    assert grid.group_size == GgufQuantizer().group_size(layer)


def test_a_group_whose_scale_is_zero_is_its_offset():
    layer = layer_of("Q4_1")
    layer.weight.view(-1, 20)[:, :2] = 0
    grid = GgufQuantizer().affine(layer)
    assert torch.allclose(grid.dequantize(), layer.dequantize())


@pytest.mark.parametrize("name", sorted(set(BLOCK_TYPES) - set(AFFINE)))
def test_other_types_have_no_grid(name):
    layer = GgufLinear(256, 1, block_type=name)
    layer.weight.data.zero_()
    assert GgufQuantizer().affine(layer) is None
