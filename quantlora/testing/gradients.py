"""Gradients of x, A and B against float64, in every order of eval, generation, training, merge."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from quantlora.merging.merge import merge, unmerge
from quantlora.operations import reference
from quantlora.operations.merge_operations import merge_mode
from quantlora.operations.subject import OneLayerModel
from quantlora.testing.base import Shape, SuiteBase
from quantlora.testing.forward import INPUTS


def _eval(model: OneLayerModel, x: Tensor) -> None:
    model.eval()(x)


def _generate(model: OneLayerModel, x: Tensor) -> None:
    model.eval()
    for rows in (x, x[:1]):
        with torch.no_grad():
            model(rows)


def _infer(model: OneLayerModel, x: Tensor) -> None:
    model.eval()
    with torch.inference_mode():
        model(x)


def _train(model: OneLayerModel, x: Tensor) -> None:
    model.train()(x).sum().backward()
    model.zero_grad()


def _merge(model: OneLayerModel, x: Tensor) -> None:
    merge(model, mode=merge_mode(model.lora.quantizer))
    model(x)
    unmerge(model)


STEPS: dict[str, Callable[[OneLayerModel, Tensor], None]] = {
    "eval": _eval,
    "generate": _generate,
    "infer": _infer,
    "train": _train,
    "merge": _merge,
}
ORDERS = [
    *permutations(("eval", "generate", "train")),
    *(("infer", "train"), ("merge", "train"), ("generate", "merge"), ("train", "merge", "eval")),
]


@pytest.mark.filterwarnings("ignore:merging lost most of the update")
class GradientTests(SuiteBase):
    """When one fails only after some step, the library changes its layers in that step.

    Undo the change in ``prepare``, in ``matmul`` or before ``dequantize`` reads the weight.
    """

    @pytest.mark.parametrize("order", ORDERS, ids="-".join)
    def test_they_are_right_after(self, order: tuple[str, ...], dtype: torch.dtype) -> None:
        layer = self.layer(dtype=dtype)
        weight, model = self.format.dequantize(layer).clone(), self.wrapped(layer)
        x = self.input(layer, 6, dtype=dtype)
        for step in order:
            STEPS[step](model, x)
        self.check_grads(model, weight, x)
        self.check_grads(model.train(), weight, x)

    def test_they_are_right_for_every_shape(self, shape: Shape, bias: bool) -> None:
        layer = self.layer(shape, bias)
        self.check_grads(self.wrapped(layer), self.format.dequantize(layer), self.input(layer, 6))

    @pytest.mark.parametrize("kind", INPUTS)
    def test_they_are_right_for_any_shape_of_input(self, kind: str) -> None:
        layer = self.layer()
        x = INPUTS[kind](self.input(layer, 6))
        self.check_grads(self.wrapped(layer), self.format.dequantize(layer), x)

    @pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float16])
    def test_they_are_right_for_any_dtype_of_input(
        self, dtype: torch.dtype, given: torch.dtype
    ) -> None:
        layer = self.layer(dtype=dtype)
        x = self.input(layer, 6, dtype=given)
        self.check_grads(self.wrapped(layer), self.format.dequantize(layer), x)

    def test_they_are_right_with_autocast(self, dtype: torch.dtype) -> None:
        layer = self.layer(dtype=dtype)
        model, x = self.wrapped(layer), self.input(layer, 6, dtype=dtype)
        with torch.autocast(x.device.type, torch.bfloat16):
            self.check_grads(model, self.format.dequantize(layer), x, torch.bfloat16)

    @pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
    def test_they_are_right_with_checkpointing(self, reentrant: bool) -> None:
        """Checkpointing runs forward again in backward: the layer must give the same weight."""
        layer = self.layer()
        model, x = self.wrapped(layer), self.input(layer, 6, grad=True)
        grad = torch.randn_like(model(x))
        checkpoint(model, x, use_reentrant=reentrant).backward(grad)
        tensors = {"x": x, **reference.trained_tensors(model.lora)}
        wanted = reference.training_step(model.lora, self.format.dequantize(layer), x, grad)
        for name, tensor in tensors.items():
            assert tensor.grad is not None
            assert reference.relative(tensor.grad, wanted[name]) <= self.tolerance(layer, x.dtype)

    def test_the_adapter_learns_where_the_input_needs_no_gradient(self) -> None:
        """The first layer of a model: nothing before it is trained."""
        layer = self.layer()
        model = self.wrapped(layer)
        model(self.input(layer, 6)).sum().backward()
        trained = reference.trained_tensors(model.lora)
        assert trained
        assert all(tensor.grad is not None for tensor in trained.values())

    def check_grads(
        self, model: OneLayerModel, weight: Tensor, x: Tensor, *dtypes: torch.dtype
    ) -> None:
        grad = torch.randn_like(model(x))
        wanted = reference.training_step(model.lora, weight, x, grad)
        found = reference.errors(reference.measured_step(model, model.lora, x, grad), wanted)
        limit = self.tolerance(model.lora.base_layer, x.dtype, *dtypes)
        assert max(found.values()) <= limit, found
