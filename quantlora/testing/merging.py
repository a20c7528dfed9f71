"""What a merge does to the layer, besides the operations: how often it packs, what is left."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from torch import nn

from quantlora.errors import MergeError
from quantlora.layers.linear import LoraLinear
from quantlora.merging.merge import merge
from quantlora.operations.merge_operations import merge_mode
from quantlora.testing.base import SuiteBase
from quantlora.wrapped_model import merge_and_unload, unload, wrap


@pytest.mark.filterwarnings("ignore:merging lost most of the update")
class MergeTests(SuiteBase):
    """When one fails, look at ``quantize(linear, like=layer)``: merging packs with it."""

    def test_several_adapters_are_packed_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = self.wrapped(self._quantizable())
        wrap(model, adapter_name="second", r=1, target_modules=["proj"], init_lora_weights=False)
        calls: list[nn.Linear] = []
        quantize = self.format.quantize

        def spy(linear: nn.Linear, **options: Any) -> nn.Module:
            calls.append(linear)
            return quantize(linear, **options)

        monkeypatch.setattr(model.lora.quantizer, "quantize", spy)
        merge(model, ["default", "second"])
        assert len(calls) == 1

    def test_a_merge_that_cannot_pack_says_so(self) -> None:
        if self.format.can_quantize:
            pytest.skip(f"{self.quantizer!r} can pack")
        model = self.wrapped()
        with pytest.raises(MergeError, match='mode="dequantize"'):
            merge(model)
        assert not model.lora.merged_adapters

    def test_merge_and_unload_leaves_a_plain_layer(self) -> None:
        layer = self.layer()
        model, x = self.wrapped(layer), self.input(layer, 6)
        merge_and_unload(model, mode=merge_mode(self.format))
        assert not isinstance(model.proj, LoraLinear)
        assert not [name for name in model.state_dict() if "lora" in name]
        if not self.format.can_quantize or not self.format.not_runnable(model.proj):
            assert model(x).isfinite().all()

    def test_unload_says_what_cannot_run(self) -> None:
        """Where `not_runnable` gives a reason, users are told, and the suite runs no layer."""
        layer = self.layer()
        model, why = self.wrapped(layer), self.format.not_runnable(layer)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            unload(model)
        told = [str(warning.message) for warning in said if "cannot run" in str(warning.message)]
        assert bool(told) == bool(why), why
        assert why.rstrip(".") in "".join(told)

    def _quantizable(self) -> nn.Module:
        if not self.format.can_quantize:
            pytest.skip(f"{self.quantizer!r} only reads layers")
        return self.layer()
