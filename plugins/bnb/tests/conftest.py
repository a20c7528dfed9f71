"""Shared by the tests of the bitsandbytes formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from quantlora import Quantizer, registry
from quantlora.testing.models import save_tiny_llama

bnb = pytest.importorskip("bitsandbytes", minversion="0.47")

Repack = Callable[[nn.Module], None]


@pytest.fixture
def four_bit() -> Quantizer:
    return registry().quantizer("bitsandbytes_4bit")


@pytest.fixture
def eight_bit() -> Quantizer:
    return registry().quantizer("bitsandbytes_8bit")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny float32 Llama that ``from_pretrained`` loads."""
    return save_tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(params=["eval forward", "packing function"])
def repack(request: pytest.FixtureRequest) -> Repack:
    """Brings the 4-bit layers of a module into upstream's CPU layout.

    By upstream's own eval forward where this CPU has AVX512-BF16, and everywhere by the function
    that this forward calls.
    """
    if not hasattr(bnb.functional, "_convert_weight_packed_for_cpu"):
        pytest.skip("this bitsandbytes has no CPU layout")
    by_forward = request.param == "eval forward"
    if by_forward and not bnb.functional.has_avx512bf16():
        pytest.skip("this CPU has no AVX512-BF16")
    return lambda module: _repack(module, by_forward)


def _repack(module: nn.Module, by_forward: bool) -> None:
    layers = [m for m in module.modules() if isinstance(m, bnb.nn.Linear4bit)]
    assert layers
    for layer in layers:
        if by_forward:
            layer.support_avx512bf16_for_cpu = True
            _eval_forward(layer)
        else:
            _pack(layer)
        assert layer.weight.quant_state.packing_format_for_cpu


def _eval_forward(layer: nn.Module) -> None:
    training = layer.training
    with torch.no_grad():
        layer.eval()(torch.randn(2, layer.in_features))
    layer.train(training)


def _pack(layer: Any) -> None:
    state = layer.weight.quant_state
    pack = bnb.functional._convert_weight_packed_for_cpu
    layer.weight.data, layer.weight.quant_state = pack(layer.weight.data, state)
