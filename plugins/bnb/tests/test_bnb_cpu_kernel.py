"""Upstream's CPU kernel on a copy, with the processor's flag forced both ways."""

from __future__ import annotations

import copy
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from quantlora_bnb import cpu_kernel
from quantlora_bnb.cpu_kernel import repack, rounded
from quantlora_bnb.cpu_layout import absmax
from torch import Tensor, nn

from quantlora import Quantizer

pytestmark = pytest.mark.skipif(
    not hasattr(bnb.functional, "_convert_weight_packed_for_cpu"),
    reason="this bitsandbytes has no CPU layout",
)
FORMS: list[dict[str, Any]] = [
    {"quant_type": kind, "compress_statistics": nested, "quant_storage": storage}
    for kind, nested, storage in (
        ("nf4", True, torch.uint8),
        ("fp4", False, torch.uint8),
        ("nf4", False, torch.bfloat16),
    )
]


def packed(four_bit: Quantizer, size: tuple[int, int] = (128, 64), **options: Any) -> Any:
    torch.manual_seed(0)
    return four_bit.quantize(nn.Linear(*size, bias=False), **options)


def stand_in(
    x: Tensor, packed: Tensor, shape: tuple[int, int], scales: Tensor, levels: Tensor, size: int
) -> Tensor:
    """What the kernel computes, where it cannot run: the weight in bfloat16, sums in float32."""
    octets = packed.view(shape[0] // 32, shape[1] // 2, 16, 2).transpose(1, 2)
    codes = torch.cat([(octets & 15), (octets >> 4)], 1).reshape(shape)
    weight = levels[codes.int()] * scales.t().float().repeat_interleave(size, 1)
    return (x.float() @ weight.bfloat16().float().t()).to(x.dtype)


@pytest.mark.parametrize("options", FORMS)
def test_the_layout_is_upstreams_bit_for_bit(four_bit: Quantizer, options: dict[str, Any]) -> None:
    """On every CPU: upstream's packing is plain torch."""
    layer = packed(four_bit, **options)
    state = layer.weight.quant_state
    codes = layer.weight.data.view(torch.uint8).view(-1, 1)
    mine = repack(codes, (64, 128)), rounded(absmax(state), 64)
    theirs, new = bnb.functional._convert_weight_packed_for_cpu(
        layer.weight.data, copy.deepcopy(state)
    )
    assert torch.equal(mine[0], theirs)
    assert torch.equal(mine[1], new.absmax)


@pytest.mark.parametrize("flag", [False, True])
@pytest.mark.parametrize("options", FORMS)
@pytest.mark.parametrize("rows", [1, 5, 32])
def test_the_product_is_that_of_the_weight(
    four_bit: Quantizer,
    flag: bool,
    options: dict[str, Any],
    rows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if flag and not bnb.functional.has_avx512bf16():
        monkeypatch.setattr(cpu_kernel, "upstreams_kernel", lambda: stand_in)
    monkeypatch.setattr(bnb.functional, "has_avx512bf16", lambda: flag)
    layer = packed(four_bit, **options)
    found = four_bit.inference_copy(layer, torch.bfloat16)
    assert ("bitsandbytes" in found.form) == flag
    x = torch.randn(rows, 128).bfloat16()
    wanted = x.double() @ four_bit.dequantize(layer).double().t()
    error = (found.make()(x).double() - wanted).norm() / wanted.norm()
    assert error < 6e-3  # bfloat16 itself: 2e-3 to 4e-3


@pytest.mark.parametrize(("size", "dtype"), [((96, 64), "bfloat16"), ((128, 40), "bfloat16")])
def test_shapes_that_the_kernel_has_no_room_for_are_dense(
    four_bit: Quantizer, size: tuple[int, int], dtype: str
) -> None:
    """Rows of no whole blocks; a number of rows that is no multiple of 32."""
    layer = packed(four_bit, size)
    assert four_bit.inference_copy(layer, torch.bfloat16).form == f"dense {dtype}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_dtypes_are_dense(four_bit: Quantizer, dtype: torch.dtype) -> None:
    """The kernel would round their inputs to bfloat16."""
    found = four_bit.inference_copy(packed(four_bit), dtype)
    assert found.form.startswith("dense")
    assert found.nbytes == 128 * 64 * dtype.itemsize
