"""`Quantizer.dequantize`: a float matrix, always the same, and the layer stays as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quantlora.formats.flattened import plain_tensors
from quantlora.operations import reference
from quantlora.testing.base import Shape, SuiteBase


class DequantizeTests(SuiteBase):
    """When one fails, look at ``dequantize``: it runs in every forward and every backward."""

    def test_it_gives_a_float_matrix(self, shape: Shape, dtype: torch.dtype) -> None:
        """``(out_features, in_features)``, as in `nn.Linear`, without padding, on its device."""
        layer = self.layer(shape, dtype=dtype)
        weight = self.format.dequantize(layer)
        assert tuple(weight.shape) == shape
        assert weight.is_floating_point()
        assert weight.device == self.format.device(layer)

    @pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16, torch.float16])
    def test_it_comes_in_the_dtype_asked_for(self, wanted: torch.dtype) -> None:
        """`dequantize_to` may be faster than `dequantize`, but only as far as rounding goes."""
        layer = self.layer()
        weight = self.format.dequantize_to(layer, wanted)
        exact = reference.float64(self.format.dequantize(layer))
        assert weight.dtype == wanted
        assert reference.relative(weight, exact) <= self.tolerances[wanted]

    def test_its_values_are_finite_and_not_all_zero(self, shape: Shape) -> None:
        weight = self.format.dequantize(self.layer(shape))
        assert weight.isfinite().all()
        assert weight.any()

    def test_it_takes_no_gradient(self) -> None:
        """Detach it: the base is frozen, and a graph would keep the weight alive."""
        assert not self.format.dequantize(self.layer()).requires_grad

    def test_it_is_the_same_twice(self, shape: Shape, dtype: torch.dtype) -> None:
        layer = self.layer(shape, dtype=dtype)
        first = self.format.dequantize(layer).clone()
        assert torch.equal(self.format.dequantize(layer), first)

    def test_it_is_the_same_in_train_and_eval_mode(self) -> None:
        layer = self.layer()
        trained = self.format.dequantize(layer.train()).clone()
        assert torch.equal(self.format.dequantize(layer.eval()), trained)

    def test_it_is_the_same_under_autocast(self) -> None:
        """Products within `dequantize` keep their dtype: they are taken with autocast off."""
        layer = self.layer()
        device = self.format.device(layer).type
        plain = self.format.dequantize(layer).clone()
        with torch.autocast(device, torch.bfloat16):
            assert torch.equal(self.format.dequantize(layer), plain)

    def test_it_does_not_change_the_layer(self) -> None:
        layer = self.layer()
        before = contents(layer)
        self.format.dequantize(layer)
        assert _same(before, contents(layer))

    def test_it_is_the_same_under_inference_mode(self) -> None:
        """It must also work where autograd is off altogether, as in generation."""
        layer = self.layer()
        with torch.inference_mode():
            inside = self.format.dequantize(layer)
            assert torch.equal(inside, self.format.dequantize(layer))
        assert torch.equal(inside.clone(), self.format.dequantize(layer))


def contents(layer: nn.Module) -> dict[str, Any]:
    """Class, dtype and bytes of each tensor of ``layer``, by name."""
    tensors = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    return {name: (type(t), t.dtype, _bytes(t)) for name, t in tensors.items()}


def _bytes(tensor: Tensor) -> Tensor:
    """Codes stored in a float dtype may be NaN there, which equals nothing."""
    plain = (part.detach().clone().reshape(-1).view(torch.uint8) for part in plain_tensors(tensor))
    return torch.cat(list(plain))


def _same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    return before.keys() == after.keys() and all(
        facts[:2] == after[name][:2] and torch.equal(facts[2], after[name][2])
        for name, facts in before.items()
    )
