"""An operation that is wrong, or refused by the wrong error, is found without pytest or assert."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from quantlora import ConfigError, MergeError
from quantlora.checks import Check
from quantlora.env.sample import Sample
from quantlora.operations.catalogue import OPERATIONS
from quantlora.operations.operation import Operation
from quantlora.operations.results import WrongResultError, hold_close
from quantlora.operations.trial import Trial

FLOAT = Trial(Sample(Check("float")), torch.float32)
DORA = Trial(Sample(Check("dora")), torch.float32)


def raising(error: Exception) -> Callable[[Trial], None]:
    def run(trial: Trial) -> None:
        raise error

    return run


def test_an_operation_that_should_be_refused_and_is_not_is_found():
    with pytest.raises(WrongResultError, match="should be refused by a ConfigError"):
        Operation("does nothing", lambda trial: None, variant="another").check(DORA)


def test_a_refusal_without_the_way_out_is_found():
    with pytest.raises(WrongResultError, match="does not say 'cannot be combined'"):
        Operation("refused", raising(ConfigError("no")), variant="another").check(DORA)


def test_an_error_that_is_no_documented_refusal_is_raised():
    with pytest.raises(MergeError):
        Operation("merges", raising(MergeError("no"))).check(FLOAT)


def test_nan_is_not_close():
    with pytest.raises(WrongResultError):
        hold_close(float("nan"), 1.0, "it differs")


@pytest.mark.parametrize("name", ["forward", "backward", "unmerge", "DoRA"])
def test_a_variant_of_the_core_passes(name):
    OPERATIONS[name].check(DORA)
