"""What a format offers besides: its grid, its files, experts, second forms of the weight.

A member that is wrong would show only in QA-LoRA's merge, in a checkpoint that is loaded again, or
in text that is generated after a layer has changed.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quantlora.formats.layer_files import LayerFiles, PackedState
from quantlora.operations import reference
from quantlora.operations.subject import OneLayerModel
from quantlora.testing.base import Shape, SuiteBase
from quantlora.testing.dequantize import contents
from quantlora.wrapped_model import unload


class OptionalTests(SuiteBase):
    """Skipped where the format does not have the member. When one fails, look at that member."""

    def test_affine_is_the_weight(self, shape: Shape, dtype: torch.dtype) -> None:
        """QA-LoRA moves the zero-points of this grid: it must give what `dequantize` gives."""
        layer = self.layer(shape, dtype=dtype)
        affine, weight = self.format.affine(layer), self.format.dequantize(layer)
        if affine is None:
            pytest.skip(f"{self.quantizer!r} shows no grid")
        assert affine.codes.dtype == torch.uint8
        assert int(affine.codes.max()) < 2**affine.bits
        assert affine.group_size == self.format.group_size(layer)
        exact, limit = reference.float64(weight), self._limit(weight, affine.scales)
        assert reference.relative(affine.dequantize(), exact) <= limit

    def test_from_affine_holds_any_zero_point(self, bias: bool) -> None:
        """An exact merge leaves zero-points between the codes."""
        layer = self.layer(bias=bias)
        affine = self.format.affine(layer)
        if affine is None or not self.format.can_hold_affine:
            pytest.skip(f"{self.quantizer!r} holds no such grid")
        affine = replace(affine.by_row(), zeros=affine.by_row().zeros.float() + 0.25)
        again = self.format.from_affine(affine, self.format.bias(layer))
        assert self.format.matches(again)
        found, wanted = self.format.dequantize(again), reference.float64(affine.dequantize())
        assert reference.relative(found, wanted) <= self._limit(found, affine.scales)
        assert _same(self.format.bias(again), self.format.bias(layer))

    def test_a_packed_state_is_the_layer(self, bias: bool, dtype: torch.dtype) -> None:
        """Settings that JSON holds, and plain tensors, give the same layer bit for bit."""
        if type(self.format).packed_state is LayerFiles.packed_state:
            pytest.skip(f"{self.quantizer!r} has no files of packed layers")
        layer = self.layer(bias=bias, dtype=dtype)
        state = self.format.packed_state(layer)
        assert all(type(tensor) in (Tensor, nn.Parameter) for tensor in state.tensors.values())
        settings = json.loads(json.dumps(dict(state.settings)))
        tensors = {name: tensor.detach().clone() for name, tensor in state.tensors.items()}
        again = self.format.from_packed_state(PackedState(settings, tensors))
        assert _same(self.format.dequantize(again), self.format.dequantize(layer))
        assert _same(self.format.bias(again), self.format.bias(layer))
        assert self.format.describe(again) == self.format.describe(layer)
        assert self.format.compute_dtype(again) == self.format.compute_dtype(layer)

    def test_experts_are_packed_each_by_itself(self) -> None:
        """One expert of large weights must not take the others' scale."""
        if not self.format.can_quantize_experts:
            pytest.skip(f"{self.quantizer!r} packs no experts")
        weight = torch.randn(3, *self.held_shapes[0])
        weight[1] *= 100
        stack = self.format.quantize_experts(weight, "experts.up_proj", **self.options)
        assert stack.shape == tuple(weight.shape)
        for expert, wanted in enumerate(weight):
            found = stack.dequantize([expert], torch.float32)[0]
            assert reference.distance(found, wanted) <= self.closeness

    @torch.no_grad()
    def test_generation_follows_the_layer_s_tensors(self) -> None:
        """A second form of the weight is made anew when a tensor of `weight_tensors` changes."""
        layer, other = self.layer(), self.layer()
        model, x = self.wrapped(layer).eval(), self.input(layer, 2)
        model(x)
        try:
            layer.load_state_dict(other.state_dict())
        except Exception as error:
            pytest.skip(f"the layer takes no other values: {error}")
        self.check_output(model, x)

    def test_unload_gives_the_layer_back_as_it_was(self) -> None:
        """What `prepare` has done to it, `release` takes back."""
        layer = self.layer()
        before, x = _picture(layer), self.input(layer, 6)
        model: Any = self.wrapped(layer)
        model(x).sum().backward()
        unload(model)
        assert isinstance(model, OneLayerModel)
        assert model.proj is layer
        assert _picture(layer) == before

    def _limit(self, *parts: Tensor) -> float:
        """Eight roundings of the coarsest dtype, or the suite's tolerance for float32."""
        steps = [8 * torch.finfo(p.dtype).eps for p in parts if p.is_floating_point()]
        return max(self.tolerances[torch.float32], *steps)


def _same(found: Tensor | None, wanted: Tensor | None) -> bool:
    if found is None or wanted is None:
        return found is wanted
    return torch.equal(found.to(wanted.dtype), wanted)


def _picture(layer: nn.Module) -> tuple[Any, ...]:
    """The layer's attributes by name, its tensors byte by byte, how many hooks it has."""
    attributes = {path: sorted(vars(part)) for path, part in layer.named_modules()}
    tensors = {name: (*facts[:2], facts[2].tolist()) for name, facts in contents(layer).items()}
    hooks = [len(value) for name, value in vars(layer).items() if name.endswith("_hooks") and value]
    return attributes, tensors, hooks, layer.training
