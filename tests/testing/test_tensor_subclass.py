"""A format of tensor subclasses (torchao's int8) passes the suite; its bytes are what it holds."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import quantlora
from quantlora import MergeError, Quantizer, registry
from quantlora.formats.flattened import count_bytes
from quantlora.testing import QuantizerSuite

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed"),
]


class TorchaoInt8(Quantizer):
    name, module, bits = "torchao_int8", "torchao", (8,)

    def layer_types(self) -> tuple[type[nn.Module], ...]:
        return (nn.Linear,)

    def matches(self, layer: nn.Module) -> bool:
        return (
            isinstance(layer, nn.Linear)
            and type(getattr(layer, "weight", None)).__name__ == "Int8Tensor"
        )

    def dequantize(self, layer: nn.Module) -> Tensor:
        return layer.weight.dequantize().detach()

    def quantize(self, linear: nn.Linear, like: Any = None, **options: Any) -> nn.Module:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        packed = copy.deepcopy(linear)
        quantize_(packed, Int8WeightOnlyConfig())
        return packed.requires_grad_(False)

    def describe(self, layer: nn.Module) -> dict[str, Any]:
        return {"bits": 8}


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry().quantizers, "torchao_int8", TorchaoInt8())


@pytest.mark.usefixtures("known")
class TestTorchaoInt8(QuantizerSuite):
    quantizer = "torchao_int8"

    @pytest.fixture(autouse=True)
    def _ready(self, known: None) -> None:
        torch.manual_seed(0)


def test_its_bytes_are_those_of_codes_and_scales() -> None:
    layer = TorchaoInt8().quantize(nn.Linear(64, 32, bias=False))
    inner = layer.weight.__tensor_flatten__()[0]
    parts = [getattr(layer.weight, name) for name in inner]
    assert count_bytes(layer.parameters()) == sum(one.nbytes for one in parts) < 32 * 64 * 2


@pytest.mark.usefixtures("known")
def test_an_export_in_the_format_is_refused_by_name(tmp_path: Path) -> None:
    model = nn.Sequential(TorchaoInt8().quantize(nn.Linear(64, 32)))
    quantlora.wrap(model, target_modules=["0"], r=2)
    with pytest.raises(MergeError, match=r"0\.weight: a Int8Tensor is no plain tensor"):
        quantlora.export_merged(model, tmp_path / "merged", mode="requantize")
