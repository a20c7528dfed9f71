"""Blocks by Transformers' own reader, and packing no worse than the package gguf's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st
from quantlora_mxfp4.blocks import pack, unpack
from torch import Tensor, nn

import quantlora
from tests.tools.expert_models import SIZES, made
from tests.tools.versions import transformers_5


def random_blocks(rows: int = 24) -> tuple[Tensor, Tensor]:
    """Every byte of code, and all scales with which weights are numbers."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (4, rows, 3, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(0, 253, (4, rows, 3), dtype=torch.uint8, generator=generator)
    return blocks, scales


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_transformers_bit_for_bit(dtype):
    theirs = pytest.importorskip("transformers.integrations.mxfp4")
    blocks, scales = random_blocks()
    wanted = theirs.convert_moe_packed_tensors(blocks, scales, dtype=dtype).transpose(1, 2)
    assert torch.equal(unpack(blocks, scales, dtype), wanted)


def test_a_scale_of_255_is_no_number():
    blocks, scales = random_blocks(1)
    assert unpack(blocks, torch.full_like(scales, 255)).isnan().all()


def test_what_is_packed_again_unchanged_keeps_every_byte():
    blocks, scales = random_blocks()
    found = pack(unpack(blocks, scales), like=scales)
    assert torch.equal(found[0], blocks)
    assert torch.equal(found[1], scales)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31), power=st.integers(-36, 36), zeros=st.integers(0, 32),
    outlier=st.sampled_from([0.0, -1e3, 7.0]), groups=st.integers(1, 3),
)  # fmt: skip
def test_no_block_is_further_off_than_the_package_ggufs(seed, power, zeros, outlier, groups):
    gguf = pytest.importorskip("gguf", "0.17")
    x = torch.randn(2, 32 * groups, generator=torch.Generator().manual_seed(seed))
    x[:, 0] += outlier
    x[:, :zeros] = 0
    x *= 10.0**power
    kind = gguf.GGMLQuantizationType.MXFP4
    theirs = torch.from_numpy(gguf.dequantize(gguf.quantize(x.numpy(), kind), kind))
    found, largest = unpack(*pack(x)), x.abs().max().clamp(min=1e-38)
    assert error(found, x, largest) <= error(theirs, x, largest) * (1 + 1e-5) + 1e-10


def error(found: Tensor, wanted: Tensor, size: Tensor) -> float:
    return float(((found.double() - wanted.double()) / size.double()).square().sum())


def test_values_that_are_on_the_grid_are_packed_exactly():
    weight = unpack(*random_blocks())
    assert torch.equal(unpack(*pack(weight)), weight)


def test_a_row_that_is_no_multiple_of_32_is_refused_by_name():
    with pytest.raises(quantlora.BackendError, match="0: 50 inputs are no multiple of 32"):
        quantlora.wrap(nn.Sequential(nn.Linear(50, 8)), backend="mxfp4")


def test_a_backward_keeps_bytes_only():
    [layer], kept = quantlora.quantize(nn.Sequential(nn.Linear(64, 32)), backend="mxfp4"), []
    x = torch.randn(2, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = layer(x)
    y.sum().backward()
    assert {t.dtype for t in kept} == {torch.uint8}
    assert torch.allclose(x.grad, layer.dequantize().sum(0).expand(2, -1), atol=1e-5)


@transformers_5
def test_experts_of_any_family_can_be_packed():
    from transformers import MixtralConfig, MixtralForCausalLM

    model = made(MixtralForCausalLM, MixtralConfig(**{**SIZES, "intermediate_size": 32}))
    quantlora.wrap(model, backend="mxfp4", r=2, exclude_modules=["lm_head"])
    stack = model.model.layers[0].mlp.experts.base_layer.stacks["down_proj"]
    assert (stack.format, stack.shape) == ("mxfp4", (4, 32, 32))
