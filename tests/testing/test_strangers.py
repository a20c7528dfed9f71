"""Two formats as somebody would write them from the docs alone, through the suite and a user's day.

One keeps its grid in a dict and its bias as a plain attribute, with groups across rows; the other's
library unpacks the whole model by a hook at the first forward.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import quantlora
from quantlora import Quantizer, registry
from quantlora.testing import QuantizerSuite


class ColumnsLinear(nn.Module):
    """``W = (codes - zero) · scale``, both for groups of outputs."""

    def __init__(self, weight: Tensor, bias: Tensor | None, group: int) -> None:
        super().__init__()
        values = weight.float().reshape(group, -1)
        low, high = values.amin(0, keepdim=True), values.amax(0, keepdim=True)
        scale = ((high - low) / 15).clamp(min=1e-8)
        codes = ((values - low) / scale).round().clamp(0, 15).to(torch.uint8)
        self.codes = nn.Parameter(codes, requires_grad=False)
        self.meta = {"scale": scale, "zero": -low / scale, "shape": tuple(weight.shape)}
        self.group, self.bias = group, bias

    def dense(self) -> Tensor:
        return ((self.codes - self.meta["zero"]) * self.meta["scale"]).reshape(self.meta["shape"])

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.dense().to(x.dtype), self.bias)


class ColumnsFormat(Quantizer):
    name, module, bits = "columns", "torch", (4,)

    def layer_types(self) -> tuple[type[nn.Module], ...]:
        return (ColumnsLinear,)

    def dequantize(self, layer: Any) -> Tensor:
        return layer.dense()

    def shape(self, layer: Any) -> tuple[int, int]:
        return layer.meta["shape"]

    def quantize(self, linear: nn.Linear, like: Any = None, **options: Any) -> nn.Module:
        fits = next(size for size in (16, 11, 8, 1) if linear.out_features % size == 0)
        bias = None if linear.bias is None else linear.bias.detach().clone()
        group = fits if like is None else like.group
        return ColumnsLinear(linear.weight.detach(), bias, group)

    def describe(self, layer: Any) -> dict[str, Any]:
        return {"bits": 4, "group": layer.group}


class CodesLinear(nn.Linear):
    """int8 codes and a scale for each row, until a hook of the model has made them a weight."""


def is_packed(layer: nn.Module) -> bool:
    return isinstance(layer, CodesLinear) and hasattr(layer, "codes")


def unpack(model: Any, args: Any) -> None:
    for layer in [*model.modules()]:
        if is_packed(layer):
            layer.weight = nn.Parameter(layer.codes * layer.scale, requires_grad=False)
            del layer.codes, layer.scale
    vars(model).pop("unpack_hook").remove()


class HookedFormat(Quantizer):
    name, module, bits = "hooked", "torch", (8,)

    def layer_types(self) -> tuple[type[nn.Module], ...]:
        return (CodesLinear,)

    def matches(self, layer: nn.Module) -> bool:
        return is_packed(layer)

    def dequantize(self, layer: Any) -> Tensor:
        return layer.codes * layer.scale

    def quantize(self, linear: nn.Linear, like: Any = None, **options: Any) -> nn.Module:
        layer: Any = CodesLinear(linear.in_features, linear.out_features, device="meta")
        scale = (linear.weight.detach().abs().amax(1, keepdim=True) / 127).clamp(min=1e-12)
        del layer.weight
        codes = (linear.weight.detach() / scale).round().to(torch.int8)
        layer.codes = nn.Parameter(codes, requires_grad=False)
        layer.scale = nn.Parameter(scale, requires_grad=False)
        bias = None if linear.bias is None else linear.bias.detach().clone()
        layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        return layer

    def prepare_model(self, model: Any, layers: Mapping[str, nn.Module]) -> None:
        if (hook := vars(model).pop("unpack_hook", None)) is not None:
            hook.remove()
            model.had_hook = True

    def release_model(self, model: Any, layers: Mapping[str, nn.Module]) -> None:
        if vars(model).pop("had_hook", False):
            model.unpack_hook = model.register_forward_pre_hook(unpack)

    def not_runnable(self, layer: nn.Module) -> str:
        return "it has no weight before its model's first forward."

    def describe(self, layer: nn.Module) -> dict[str, Any]:
        return {"bits": 8}


FORMATS: dict[str, Callable[[], Quantizer]] = {"columns": ColumnsFormat, "hooked": HookedFormat}


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, make in FORMATS.items():
        monkeypatch.setitem(registry().quantizers, name, make())


class Stranger(QuantizerSuite):
    @pytest.fixture(autouse=True)
    def _ready(self, known: None) -> None:
        torch.manual_seed(0)


@pytest.mark.slow
class TestColumns(Stranger):
    quantizer = "columns"
    closeness = 0.2


@pytest.mark.slow
class TestHooked(Stranger):
    quantizer = "hooked"
    shapes: ClassVar = ((128, 128), (33, 50))


FIELDS: dict[str, Any] = {"target_modules": ["0", "2"], "r": 2, "init_lora_weights": False}


@pytest.fixture(params=FORMATS)
def model(request: pytest.FixtureRequest) -> Any:
    """Two packed layers, under the hook where the format has one; one adapter."""
    torch.manual_seed(0)
    packed = registry().quantizers[request.param]
    made: Any = nn.Sequential(
        packed.quantize(nn.Linear(8, 16)), nn.Tanh(), packed.quantize(nn.Linear(16, 8))
    )
    if request.param == "hooked":
        made.unpack_hook = made.register_forward_pre_hook(unpack)
    return quantlora.wrap(made, **FIELDS)


X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


def test_it_trains_with_several_adapters_and_in_mixed_batches(model: Any) -> None:
    quantlora.wrap(model, adapter_name="two", **{**FIELDS, "use_dora": True})
    alone = []
    for name in ("default", "two"):
        quantlora.set_adapter(model, name)
        alone.append(model(X))
    with quantlora.mixed_batch(model, ["default", "two"] * 2):
        mixed = model(X)
    assert torch.allclose(mixed[::2], alone[0][::2], atol=1e-6)
    assert torch.allclose(mixed[1::2], alone[1][1::2], atol=1e-6)
    mixed.sum().backward()
    assert model[0].lora_B["two"].weight.grad.any()


def test_it_is_saved_deleted_loaded_and_copied(model: Any, tmp_path: Path) -> None:
    wanted = model(X)
    quantlora.save_adapter(model, tmp_path)
    quantlora.delete_adapter(model, "default")
    quantlora.load_adapter(model, tmp_path)
    assert torch.equal(model(X), wanted)
    assert torch.equal(copy.deepcopy(model)(X), wanted)


def test_it_is_merged_and_taken_out_again(model: Any) -> None:
    wanted = model(X)
    quantlora.merge(model, mode="dequantize")
    assert torch.allclose(model(X), wanted, atol=1e-5)
    quantlora.unmerge(model)
    assert torch.equal(model(X), wanted)


def test_it_computes_as_the_base_when_its_last_adapter_is_deleted(model: Any) -> None:
    with quantlora.adapters_disabled(model):
        base = model(X)
    quantlora.delete_adapter(model, "default")
    assert torch.equal(model(X), base)
    quantlora.wrap(model, **FIELDS)
    assert not torch.equal(model(X), base)


@pytest.mark.filterwarnings("ignore:.*cannot run here")
def test_it_is_as_it_was_after_unload(model: Any) -> None:
    with quantlora.adapters_disabled(model):
        base = model(X)
    quantlora.unload(model)
    assert torch.allclose(model(X), base, atol=1e-6)
