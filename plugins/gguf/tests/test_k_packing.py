"""Blocks with packed scales: read by the package ``gguf``, no worse than plain rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from quantlora_gguf import BLOCK_TYPES, GgufQuantizer
from quantlora_gguf.k_packing import K_TYPES, pack_k
from torch import Tensor, nn

import quantlora

gguf = pytest.importorskip("gguf")

NAMES = sorted(K_TYPES)
#: Relative error (Frobenius) of normal weights, measured, with some room.
ERRORS = {
    "Q2_K": 0.31, "Q3_K": 0.16, "Q4_K": 0.08, "Q5_K": 0.04, "Q6_K": 0.022, "IQ4_NL": 0.08,
    "IQ4_XS": 0.085,
}  # fmt: skip


def plainly(x: np.ndarray, name: str) -> np.ndarray:
    """Blocks rounded in the straightforward way: range to codes, scales to their integers."""
    how = K_TYPES[name]
    groups = x.astype(np.float64).reshape(-1, how.groups, x.shape[-1] // how.groups)
    values = np.array(how.values, dtype=np.float64)
    if how.low_factor is not None:
        low = np.minimum(groups.min(-1), 0)
        high = np.maximum(groups.max(-1), low)
        scale = to_integers((high - low) / values[-1], how)
        offset = -to_integers(-low, how)
    else:
        at = np.abs(groups).argmax(-1)[..., None]
        scale, offset = np.take_along_axis(groups, at, -1)[..., 0] / values[0], 0 * at[..., 0]
        scale = to_integers(scale, how) if how.scales else scale.astype(np.float16).astype(float)
    with np.errstate(all="ignore"):
        scaled = np.nan_to_num((groups - offset[..., None]) / scale[..., None])
    codes = np.abs(scaled[..., None] - values).argmin(-1)
    return (values[codes] * scale[..., None] + offset[..., None]).reshape(x.shape)


def to_integers(scale: np.ndarray, how) -> np.ndarray:
    """``(blocks, groups)`` as multiples of a float16."""
    end = how.lowest or how.highest
    extreme = np.take_along_axis(scale, np.abs(scale).argmax(-1)[:, None], -1)
    factor = (extreme / end).astype(np.float16).astype(np.float64)
    with np.errstate(all="ignore"):
        steps = np.nan_to_num(np.round(scale / factor)).clip(how.lowest, how.highest)
    return steps * factor


def read(packed: Tensor, name: str) -> Tensor:
    """By the package, which ours must be equal to, byte for byte."""
    with np.errstate(all="ignore"):
        theirs = gguf.dequantize(packed.numpy(), gguf.GGMLQuantizationType[name])
    ours = BLOCK_TYPES[name].dequantize(packed)
    assert np.array_equal(theirs.astype(np.float32), ours.numpy())
    return ours


@pytest.mark.parametrize("name", NAMES)
def test_normal_weights_lose_no_more_than_was_measured(name):
    weight = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    found = read(pack_k(weight, name), name)
    assert float((found - weight).norm() / weight.norm()) < ERRORS[name]


@st.composite
def hostile(draw) -> Tensor:
    """Some blocks of 256: constant, one-sided, with outliers, empty, tiny or large."""
    rows, blocks = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = torch.randn(rows, 256 * blocks, generator=generator)
    kind = draw(st.sampled_from(["plain", "constant", "positive", "negative", "outlier", "holes"]))
    if kind == "constant":
        x = x[:, :1].expand_as(x).clone()
    elif kind in ("positive", "negative"):
        x = x.abs() * (1 if kind == "positive" else -1) + draw(st.sampled_from([0, 5]))
    elif kind == "outlier":
        x[:, draw(st.integers(0, 255))] = draw(st.sampled_from([-1e3, 1e3]))
    elif kind == "holes":
        x[:, : draw(st.integers(1, 256))] = 0
    return x * 10.0 ** draw(st.integers(-9, 3))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=20, deadline=None)
@given(weight=hostile())
def test_no_block_is_further_off_than_by_plain_rounding(name, weight):
    found = read(pack_k(weight, name), name)
    x = weight.view(-1, BLOCK_TYPES[name].elements).double().numpy()
    wanted = np.square(plainly(x, name) - x).sum(-1)
    error = np.square(found.double().numpy().reshape(x.shape) - x).sum(-1)
    assert (error <= wanted * 1.01 + 1e-6 * np.square(x).sum(-1) * 1e-6).all()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_packed_again_unchanged_keeps_every_byte(name):
    layer = GgufQuantizer().quantize(nn.Linear(512, 8), block_type=name)
    linear = nn.Linear(512, 8)
    linear.weight.data = layer.dequantize()
    again = GgufQuantizer().quantize(linear, like=layer)
    assert torch.equal(again.weight, layer.weight)


def test_weights_beyond_half_precisions_range_are_refused():
    model = nn.Sequential(nn.Linear(256, 4))
    model[0].weight.data *= 1e12
    with pytest.raises(quantlora.BackendError, match="beyond the format's range"):
        quantlora.wrap(model, backend="gguf", quantize_options={"block_type": "Q4_K"})


def test_a_merge_into_super_blocks_is_the_nearest_of_them():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 16))
    options = {"block_type": "Q6_K"}
    quantlora.wrap(
        model, backend="gguf", r=2, target_modules=["0"], init_lora_weights=False,
        quantize_options=options,
    )  # fmt: skip
    x = torch.randn(5, 256)
    before = model(x)
    quantlora.merge_and_unload(model, mode="requantize")
    assert model[0].block_type == "Q6_K"
    assert float((model(x) - before).norm() / before.norm()) < 0.03
