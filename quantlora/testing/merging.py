"""Folding adapters into the base, and out again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quantlora.errors import MergeError
from quantlora.layers.linear import LoraLinear
from quantlora.merging.merge import merge, unmerge
from quantlora.testing import reference
from quantlora.testing.base import SuiteBase, merge_mode
from quantlora.wrapped_model import merge_and_unload, wrap


@pytest.mark.filterwarnings("ignore:merging lost most of the update")
class MergeTests(SuiteBase):
    """When one fails, look at ``quantize(linear, like=layer)``: merging packs with it."""

    def test_unmerge_is_bit_exact(self, dtype: torch.dtype) -> None:
        layer = self.layer(dtype=dtype)
        model, x = self.wrapped(layer), self.input(layer, 6, dtype=dtype)
        weight, before = self.format.dequantize(layer).clone(), model(x)
        merge(model, mode=merge_mode(self.format))
        unmerge(model)
        assert model.lora.base_layer is layer
        assert torch.equal(model.lora.dequantize(), weight)
        assert torch.equal(model(x), before)

    def test_a_merge_to_float_keeps_the_output(self) -> None:
        """``mode="dequantize"``: the same output, within the rounding of the products."""
        layer = self.layer()
        model, x = self.wrapped(layer), self.input(layer, 6)
        wanted = reference.output(model.lora, self.format.dequantize(layer), x)
        merge(model, mode="dequantize")
        assert reference.relative(model(x), wanted) <= self.tolerance(layer, x.dtype)

    def test_a_merge_in_the_format_loses_no_more_than_packing(self) -> None:
        model = self.wrapped(self._quantizable())
        wanted = reference.merged_weight(model.lora)
        merge(model)
        assert model.lora.quantizer.name == self.quantizer
        error = (model.lora.dequantize().double() - wanted).norm() / wanted.norm()
        assert error <= max(self.closeness, 1e-6)

    def test_a_merged_layer_computes_with_its_new_weight(self) -> None:
        layer = self._quantizable()
        model, x = self.wrapped(layer), self.input(layer, 6)
        merge(model)
        wanted = _product(model.lora, x)
        assert reference.relative(model(x), wanted) <= self.tolerance(layer, x.dtype)

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
        assert model(x).isfinite().all()

    def _quantizable(self) -> nn.Module:
        if not self.format.can_quantize:
            pytest.skip(f"{self.quantizer!r} only reads layers")
        return self.layer()


def _product(lora: LoraLinear, x: Tensor) -> Tensor:
    y = reference.float64(x) @ reference.float64(lora.dequantize()).t()
    return y if lora.base_bias is None else y + reference.float64(lora.base_bias)
