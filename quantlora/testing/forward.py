"""The output: that of the dequantized weight, for every shape, dtype and mode."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from quantlora.operations import reference
from quantlora.testing.base import Shape, SuiteBase

#: Inputs that models do send, made from a plain ``(6, in_features)``.
INPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "one row": lambda x: x[:1],
    "no batch": lambda x: x[0],
    "empty batch": lambda x: x[:0],
    "empty sequence": lambda x: x.reshape(2, 3, -1)[:, :0],
    "3-D": lambda x: x.reshape(2, 3, -1),
    "4-D": lambda x: x.reshape(1, 2, 3, -1),
    "every second row": lambda x: x[::2],
    "columns first": lambda x: x.t().contiguous().t(),
    "transposed batch": lambda x: x.reshape(2, 3, -1).transpose(0, 1),
    "expanded": lambda x: x[:1].expand(5, -1),
}


class ForwardTests(SuiteBase):
    """When one fails in no-grad only, look at ``matmul``; else at ``dequantize`` and ``bias``."""

    def test_a_fresh_adapter_changes_nothing(self, shape: Shape, dtype: torch.dtype) -> None:
        """With B = 0 the output is ``x · dequantize(Q)ᵀ + bias``."""
        layer = self.layer(shape, dtype=dtype)
        model = self.wrapped(layer, init_lora_weights=True)
        self.check_output(model, self.input(layer, 6, dtype=dtype))

    def test_the_bias_is_added(self, bias: bool) -> None:
        layer = self.layer(bias=bias)
        self.check_output(self.wrapped(layer), self.input(layer, 6))

    @pytest.mark.parametrize("kind", INPUTS)
    def test_any_shape_of_input(self, kind: str) -> None:
        layer = self.layer()
        self.check_output(self.wrapped(layer), INPUTS[kind](self.input(layer, 6)))

    @pytest.mark.parametrize("kind", INPUTS)
    def test_any_shape_of_input_without_gradients(self, kind: str) -> None:
        """`matmul` may decline by returning None; what it returns must be right."""
        layer = self.layer()
        model = self.wrapped(layer).eval()
        with torch.no_grad():
            self.check_output(model, INPUTS[kind](self.input(layer, 6)))

    @pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float16])
    def test_any_dtype_of_input_on_any_layer(self, dtype: torch.dtype, given: torch.dtype) -> None:
        """A float16 layer in a float32 model, and the other way round; the output has x's dtype."""
        layer = self.layer(dtype=dtype)
        model, x = self.wrapped(layer), self.input(layer, 6, dtype=given)
        assert model(x).dtype == given
        self.check_output(model, x)

    def test_autocast_decides_the_dtype(self) -> None:
        layer = self.layer()
        model, x = self.wrapped(layer), self.input(layer, 6)
        with torch.autocast(x.device.type, torch.bfloat16):
            assert model(x).dtype == torch.bfloat16
            self.check_output(model, x, torch.bfloat16)

    def test_generation_gives_what_training_gives(self, dtype: torch.dtype) -> None:
        """One token and many, with gradients off: `matmul` against the training path."""
        layer = self.layer(dtype=dtype)
        model = self.wrapped(layer).eval()
        for rows in (1, 6, 64):
            x = self.input(layer, rows, dtype=dtype)
            with torch.inference_mode():
                fast = model(x)
            error = reference.relative(fast.clone(), reference.float64(model(x)))
            assert error <= 2 * self.tolerance(layer, dtype), f"{rows} rows"

    def test_the_base_is_frozen_and_the_adapter_is_not(self) -> None:
        trained = {n for n, p in self.wrapped().named_parameters() if p.requires_grad}
        assert trained == {"proj.lora_A.default.weight", "proj.lora_B.default.weight"}
