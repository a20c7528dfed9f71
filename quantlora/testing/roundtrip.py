"""An adapter to disk and back, bit for bit."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from quantlora.checkpoint.save import save_adapter
from quantlora.merging.merge import merge
from quantlora.operations.merge_operations import merge_mode
from quantlora.operations.subject import OneLayerModel
from quantlora.testing.base import SuiteBase
from quantlora.wrapped_model import load_adapter


@pytest.mark.filterwarnings("ignore:merging lost most of the update")
class RoundTripTests(SuiteBase):
    """When one fails, a copy of the layer does not give the same weight, or `describe` fails."""

    def test_a_reloaded_adapter_gives_the_same_output(self, tmp_path: Path) -> None:
        layer = self.layer()
        twin, model = OneLayerModel(copy.deepcopy(layer)), self.wrapped(layer)
        save_adapter(model, tmp_path)
        load_adapter(twin, tmp_path)
        x = self.input(layer, 6)
        for mine, theirs in zip(_factors(model), _factors(twin), strict=True):
            assert torch.equal(mine, theirs)
        assert torch.equal(twin(x), model(x))

    def test_an_adapter_saved_while_merged_is_the_same(self, tmp_path: Path) -> None:
        """A and B are apart from the base: a merge does not touch them."""
        model = self.wrapped()
        before = [factor.clone() for factor in _factors(model)]
        merge(model, mode=merge_mode(self.format))
        save_adapter(model, tmp_path)
        fresh = load_adapter(OneLayerModel(self.layer()), tmp_path)
        assert all(torch.equal(*pair) for pair in zip(before, _factors(fresh), strict=True))


def _factors(model: OneLayerModel) -> list[Tensor]:
    return [factor.weight for factor in model.lora.factors("default")]
