"""``bias=`` where a layer's bias is no parameter and no buffer: trained, or refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import quantlora
from quantlora import BackendError, Quantizer, registry

X = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))


class Plain(nn.Module):
    """A packed layer whose bias is a mere attribute, as HQQ has it."""

    def __init__(self, name: str = "bias") -> None:
        super().__init__()
        self.out_features, self.in_features = 4, 6
        self.register_buffer("codes", torch.ones(4, 6, dtype=torch.int8))
        setattr(self, name, torch.arange(4.0))


class PlainQuantizer(Quantizer):
    name, module = "plain_bias", "torch"

    def layer_types(self) -> tuple[type[nn.Module], ...]:
        return (Plain,)

    def dequantize(self, layer: nn.Module) -> Tensor:
        return layer.codes.float()

    def bias(self, layer: nn.Module) -> Tensor | None:
        return layer.bias if hasattr(layer, "bias") else layer.offset


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry().quantizers, "plain_bias", PlainQuantizer())


def wrap(layer: nn.Module) -> Any:
    return quantlora.wrap(nn.Sequential(layer), r=2, target_modules=["0"], bias="lora_only")


def test_a_bias_that_is_an_attribute_is_trained():
    model = wrap(Plain())
    model(X).sum().backward()
    assert torch.equal(model[0].base_bias.grad, torch.full((4,), 3.0))


def test_without_the_adapter_it_is_the_attribute_again():
    layer = Plain()
    own, model = layer.bias, wrap(layer)
    with torch.no_grad():
        model[0].base_bias.add_(1)
    torch.testing.assert_close(model(X), X @ torch.ones(6, 4) + own + 1)
    quantlora.delete_adapter(model, "default")
    assert vars(layer)["bias"] is own


def test_a_bias_under_another_name_is_refused():
    with pytest.raises(BackendError, match=r"^0: the bias of this Plain is computed, or kept"):
        wrap(Plain("offset"))


def test_a_computed_bias_of_a_float_layer_is_refused():
    linear = prune.random_unstructured(nn.Linear(6, 4), "bias", 0.5)
    with pytest.raises(BackendError, match="would not be trained"):
        wrap(linear)
