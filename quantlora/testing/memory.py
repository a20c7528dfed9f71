"""What a forward leaves behind: never a weight as floats."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from quantlora.testing.base import SuiteBase


class MemoryTests(SuiteBase):
    """A dequantized weight that lives until backward costs what quantization saved."""

    @pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
    def test_nothing_of_the_weights_size_is_saved_for_backward(self, autocast: bool) -> None:
        layer = self.layer()
        model, x = self.wrapped(layer), self.input(layer, 3, grad=True)
        saved: list[torch.Size] = []

        def note(tensor: Tensor) -> Tensor:
            saved.append(tensor.shape)
            return tensor

        with (
            saved_tensors_hooks(note, lambda t: t),
            torch.autocast(x.device.type, torch.bfloat16, enabled=autocast),
        ):
            model(x)
        out_features, in_features = self.format.shape(layer)
        assert saved, "a training forward saves at least its input"
        assert not [size for size in saved if size.numel() >= out_features * in_features]

    def test_the_dequantized_weight_is_freed_after_forward(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Do not keep it: no cache on the layer, none in the quantizer."""
        layer = self.layer()
        model, x = self.wrapped(layer), self.input(layer, 3, grad=True)
        given: list[weakref.ref[Tensor]] = []
        dequantize = model.lora.quantizer.dequantize_to

        def spy(base: nn.Module, dtype: torch.dtype) -> Tensor:
            weight = dequantize(base, dtype)
            given.append(weakref.ref(weight))
            return weight

        monkeypatch.setattr(model.lora.quantizer, "dequantize_to", spy)
        y = model(x)
        gc.collect()
        assert given, "forward did not ask for the weight"
        assert y.requires_grad
        assert not [ref for ref in given if ref() is not None]
