"""Copies of a wrapped model: `copy.deepcopy`, `pickle`, and the keys of its state dict."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from quantlora.formats.flattened import plain_tensors
from quantlora.operations.subject import OneLayerModel
from quantlora.testing.base import SuiteBase
from quantlora.testing.gradients import STEPS


class CopyTests(SuiteBase):
    """When one fails, the layer or its tensors need their library's own way to be copied."""

    def test_a_deepcopy_computes_the_same(self) -> None:
        model = self.wrapped()
        x = self.input(model.lora.base_layer, 6)
        assert torch.equal(copy.deepcopy(model)(x), model(x))

    @pytest.mark.parametrize("step", ["generate", "train"])
    def test_a_deepcopy_after_use_computes_the_same(self, step: str) -> None:
        model = self.wrapped()
        x = self.input(model.lora.base_layer, 6)
        STEPS[step](model, x)
        twin = copy.deepcopy(model)
        assert torch.equal(twin.lora.dequantize(), model.lora.dequantize())
        assert torch.equal(twin(x), model(x))

    def test_a_deepcopy_is_independent(self) -> None:
        """No tensor is shared, and training the copy leaves the original alone."""
        model = self.wrapped()
        x = self.input(model.lora.base_layer, 6)
        before, twin = model(x), copy.deepcopy(model)
        assert not _storages(model) & _storages(twin)
        with torch.no_grad():
            for part in (part for tensor in twin.parameters() for part in plain_tensors(tensor)):
                if part.is_floating_point():
                    part.zero_()
        assert torch.equal(model(x), before)

    def test_a_pickled_copy_computes_the_same(self) -> None:
        """Worker processes get a pickled model; skipped where the bare layer cannot be pickled."""
        layer = self.layer()
        try:
            pickle.loads(pickle.dumps(layer))
        except Exception as error:
            pytest.skip(f"the bare layer cannot be pickled: {error}")
        model, x = self.wrapped(layer), self.input(layer, 6)
        twin = pickle.loads(pickle.dumps(model))
        assert torch.equal(twin(x), model(x))

    def test_the_state_dict_has_pefts_keys(self) -> None:
        """Everything of the base under ``base_layer.``, and the adapter's two matrices."""
        layer = self.layer()
        base = {f"proj.base_layer.{key}" for key in layer.state_dict()}
        adapter = {f"proj.lora_{side}.default.weight" for side in "AB"}
        assert set(self.wrapped(layer).state_dict()) == base | adapter


def _storages(model: OneLayerModel) -> set[int]:
    tensors = (*model.parameters(), *model.buffers())
    plain = (inner for tensor in tensors for inner in plain_tensors(tensor))
    return {part.untyped_storage().data_ptr() for part in plain if part.numel()}
