"""Adapters that are chosen while all are disabled do not count, and that is said."""

from __future__ import annotations

import pytest
import torch

import quantlora
from quantlora.errors import AdapterWarning


def test_adapters_that_are_chosen_while_disabled_are_named_with_the_remedy(wrapped, x) -> None:
    model = wrapped()
    expected = model(x)
    quantlora.disable_adapters(model)
    with pytest.warns(AdapterWarning, match="enable_adapters"):
        quantlora.set_adapter(model, "default")
    with (
        pytest.warns(AdapterWarning, match="enable_adapters"),
        quantlora.mixed_batch(model, ["default"] * len(x)),
    ):
        assert not torch.equal(model(x), expected)
    quantlora.enable_adapters(model)
    assert torch.equal(model(x), expected)
