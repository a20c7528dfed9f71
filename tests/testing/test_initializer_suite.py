"""The suite for initializers bites: a change of the base that is not declared fails it."""

import pytest
import torch
from torch import nn

import quantlora
from quantlora import ConfigError, Initializer, linear_from, registry
from quantlora.testing import InitializerSuite


class Halves(Initializer):
    """A third of the base is dropped, without a word."""

    name = "halves"

    def initialize(self, layer, context):
        layer.lora_A[context.adapter].weight.data.fill_(0.1)
        layer.base_layer = linear_from(layer.dequantize() / 2, layer.base_layer.bias)


class Declared(Halves):
    changes_base = True


class InPlace(Halves):
    def initialize(self, layer, context):
        layer.lora_A[context.adapter].weight.data.fill_(0.1)
        layer.base_layer.weight.detach().div_(2)


class PutsFloat(Initializer):
    """In place of whatever the base was."""

    name, changes_base = "halves", True

    def initialize(self, layer, context):
        layer.lora_A[context.adapter].weight.data.fill_(0.1)
        layer.base_layer = linear_from(layer.dequantize(), layer.base_bias)


FAULTS = [
    (Halves(), "test_the_base_changes_only_where_that_is_declared"),
    (InPlace(), "test_the_base_changes_only_where_that_is_declared"),
    (Declared(), "test_a_changed_base_is_made_up_for"),
]


@pytest.mark.parametrize(("fault", "test"), FAULTS, ids=lambda one: type(one).__name__)
def test_a_fault_is_found(fault, test, monkeypatch):
    monkeypatch.setitem(registry().initializers, "halves", fault)
    suite = type("Suite", (InitializerSuite,), {"initializer": "halves"})()
    watching = "only_where" in test
    with pytest.raises(AssertionError):
        getattr(suite, test)(*([monkeypatch] if watching else []))


def test_a_changed_base_under_another_adapter_is_refused(monkeypatch):
    monkeypatch.setitem(registry().initializers, "halves", Declared())
    model, x = nn.Sequential(nn.Linear(8, 4)), torch.randn(3, 8)
    quantlora.wrap(model, adapter_name="first", r=2, init_lora_weights=False)
    before = model(x)
    with pytest.raises(ConfigError, match="'halves' changes the base, which first uses too"):
        quantlora.wrap(model, adapter_name="second", r=2, init_lora_weights="halves")
    assert torch.equal(model(x), before)


def test_a_base_of_another_format_is_refused(monkeypatch):
    monkeypatch.setitem(registry().initializers, "halves", PutsFloat())
    model = quantlora.quantize(nn.Sequential(nn.Linear(64, 64)), backend="normalfloat")
    with pytest.raises(ConfigError, match="a Linear in place of a layer in format 'normalfloat'"):
        quantlora.wrap(model, r=2, init_lora_weights="halves")


class TestDefault(InitializerSuite):
    initializer = "default"


class TestGaussian(InitializerSuite):
    initializer = "gaussian"
