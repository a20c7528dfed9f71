"""torch's int4 kernel on a copy of a 4-bit grid: which weights it takes, and its numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import quantlora
from quantlora.formats import int4_copy
from quantlora.operations import reference

FORM = "codes for torch's int4 kernel"
FORMATS = {
    "normalfloat": {"bits": 4, "quant_type": "uniform", "block_size": 32},
    "gptq": {"bits": 4, "group_size": 32},
    "awq": {"bits": 4, "group_size": 32},
    "compressed_tensors": {"bits": 4, "group_size": 32},
}
LIBRARIES = {"gptq": "gptqmodel", "awq": "gptqmodel", "compressed_tensors": "compressed_tensors"}


def wrapped(backend: str, shape: tuple[int, int] = (48, 128), **options: Any) -> nn.Module:
    if backend in LIBRARIES:
        pytest.importorskip(LIBRARIES[backend])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(shape[1], shape[0], dtype=torch.bfloat16))
    given = {"quantize_options": FORMATS[backend] | options, "backend": backend}
    return quantlora.wrap(model, r=4, target_modules=["0"], init_lora_weights=False, **given).eval()


def form(model: nn.Module, dtype: torch.dtype = torch.bfloat16) -> str:
    found = model[0].quantizer.inference_copy(model[0].base_layer, dtype)
    assert found is not None
    return found.form


def wanted(layer: Any, x: Tensor) -> Tensor:
    y = x.double() @ layer.dequantize().double().t() + layer.base_bias.double()
    A, B = (factor.weight.detach().double() for factor in layer.factors("default"))
    return y + layer.scaling["default"] * (x.double() @ A.t() @ B.t())


@pytest.fixture(params=[True, False], ids=["with the kernel", "without"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whatever this CPU has; the operation itself runs on all."""
    monkeypatch.setattr(int4_copy, "has_kernel", lambda: request.param)
    return bool(request.param)


@pytest.mark.filterwarnings("ignore:backend='gptq' without calibration")
@pytest.mark.parametrize("rows", [1, 5, 32])
@pytest.mark.parametrize("backend", FORMATS)
def test_the_product_is_right_with_the_kernel_and_without(
    backend: str, rows: int, kernel: bool
) -> None:
    model = wrapped(backend)
    assert (form(model) == FORM) == kernel
    x = torch.randn(rows, 128, dtype=torch.bfloat16)
    with torch.no_grad():
        for _ in range(2):
            assert reference.relative(model(x), wanted(model[0], x)) < 5e-3
    assert quantlora.free_inference_copies(model) == (48 * 64 + 4 * 48 * 4 if kernel else 48 * 256)


@pytest.mark.parametrize(
    ("options", "shape"),
    [({"block_size": 16}, (48, 128)), ({"bits": 8}, (48, 128)), ({}, (40, 128))],
    ids=["groups of 16", "8 bits", "outputs that fill no tile"],
)
def test_other_weights_are_kept_as_floats(
    options: dict[str, Any], shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int4_copy, "has_kernel", lambda: True)
    assert form(wrapped("normalfloat", shape, **options)) == "dense bfloat16"


def test_float32_keeps_its_own_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int4_copy, "has_kernel", lambda: True)
    assert form(wrapped("normalfloat"), torch.float32) == "dense float32"


@pytest.mark.parametrize(
    ("capability", "has"), [("AVX512", True), ("AVX2", True), ("DEFAULT", False)]
)
def test_without_vector_instructions_the_kernel_is_not_taken(
    capability: str, has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert int4_copy.has_kernel() == has
