"""The suite for initializers bites: a change of the base that is not declared fails it."""

import pytest

from quantlora import Initializer, linear_from, registry
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


class TestDefault(InitializerSuite):
    initializer = "default"


class TestGaussian(InitializerSuite):
    initializer = "gaussian"
