"""The operations bite on variants: the page's example passes, and each lie about one is found."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from quantlora import registry
from quantlora.checks import Check
from quantlora.env.sample import Sample
from quantlora.operations.catalogue import OPERATIONS
from quantlora.operations.results import WrongResultError
from quantlora.operations.trial import Trial
from tests.docs.pages import runnable

NAMES: dict[str, Any] = {}
next(b for b in runnable("docs/plugins.md") if "class GainLinear" in b.code).run(NAMES)
GainLinear = NAMES["GainLinear"]


class TrainsNothingOfA(GainLinear):
    """Says that A is trained, and stops its gradient."""

    def is_trained(self, name, key):
        return True

    def factors(self, name):
        A, B = super().factors(name)
        A.weight.requires_grad_(False)
        return A, B


class LeavesOut(GainLinear):
    """The gain is trained, and in no file."""

    def adapter_tensors(self, name):
        tensors = super().adapter_tensors(name)
        return {key: one for key, one in tensors.items() if key != "lora_gain"}


class MergesAnother(GainLinear):
    """What is merged is not what the forward adds."""

    def delta_weight(self, name, weight):
        return 1.1 * super().delta_weight(name, weight)


class BendsPlainOnes(GainLinear):
    """A plain adapter on the same layer gets the sign too."""

    def delta(self, name, x, product, weight):
        return -super().delta(name, x, product, weight)

    def delta_weight(self, name, weight):
        return -super().delta_weight(name, weight)


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs one operation with a class as the variant ``gain``."""

    def run(variant: type, operation: str) -> None:
        torch.manual_seed(0)
        monkeypatch.setitem(registry().variants, "gain", [variant])
        OPERATIONS[operation].check(Trial(Sample(Check("gain")), torch.float32))

    return run


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_pages_variant_has_every_operation(check, operation):
    check(GainLinear, operation)


@pytest.mark.parametrize(
    ("variant", "operation", "fault"),
    [
        (TrainsNothingOfA, "train", "lora_A.weight is not trained, and is_trained says"),
        (LeavesOut, "train", "not in adapter_tensors: .*lora_gain"),
        (MergesAnother, "forward", "the output differs"),
        (BendsPlainOnes, "weighted combination", "differs"),
    ],
)
def test_a_variant_that_lies_is_found(check, variant, operation, fault):
    with pytest.raises(WrongResultError, match=fault):
        check(variant, operation)
