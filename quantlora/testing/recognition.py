"""Is a layer taken by this quantizer, by no other, and only where its library is loaded?"""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn

from quantlora.discovery.registration import registry
from quantlora.testing.base import Shape, SuiteBase


class RecognitionTests(SuiteBase):
    """When one fails, look at ``layer_types``, ``matches``, ``module`` and ``shape``."""

    def test_exactly_one_quantizer_takes_the_layer(
        self, shape: Shape, bias: bool, dtype: torch.dtype
    ) -> None:
        """Two: `matches` (or the other's) is too wide. None: it is too narrow."""
        takers = [q.name for q in registry().candidates(self.layer(shape, bias, dtype))]
        assert takers == [self.quantizer]

    def test_a_plain_linear_is_not_taken(self) -> None:
        """Float layers belong to the built-in quantizer: look at the weight, not the class."""
        if self.quantizer != "float":
            assert not self.format.matches(nn.Linear(8, 8))

    def test_other_modules_are_not_taken_and_do_no_harm(self) -> None:
        """`matches` is asked about every module: it must answer, never raise."""
        assert not any(self.format.matches(other) for other in _odd_modules())

    def test_nothing_is_matched_while_the_library_is_not_imported(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """``module`` (and ``other_modules``) are the import names of libraries with such layers."""
        modules = (self.format.module, *self.format.other_modules)
        if "torch" in modules:
            pytest.skip("torch is always imported")
        layer = self.layer()
        assert self.format.imported, f"make_layer imported none of {modules}: is `module` right?"
        for module in modules:
            monkeypatch.delitem(sys.modules, module, raising=False)
        assert self.format not in registry().candidates(layer)

    def test_the_shape_is_known_without_dequantizing(self, shape: Shape) -> None:
        """Override `shape` where the layer has no ``out_features`` and ``in_features``."""
        assert self.format.shape(self.layer(shape)) == shape

    def test_the_bias_is_found(self, bias: bool) -> None:
        """Override `bias` where the layer keeps it elsewhere."""
        layer = self.layer(bias=bias)
        found = self.format.bias(layer)
        assert (found is not None) == bias
        assert found is None or tuple(found.shape) == self.format.shape(layer)[:1]

    def test_it_describes_the_layer_in_plain_values(self) -> None:
        """`describe` goes into JSON files."""
        assert all(_is_plain(value) for value in self.format.describe(self.layer()).values())


class _Clamped(nn.Linear):
    """A subclass with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(-1, 1)


def _odd_modules() -> list[nn.Module]:
    """No layers of any format: without a weight, with integers in it, of classes near to linear."""
    bare, empty, integers = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
    del bare.weight
    empty.register_parameter("weight", None)
    integers.weight = nn.Parameter(torch.ones(8, 8, dtype=torch.int8), requires_grad=False)
    others = (nn.LayerNorm(8), nn.Sequential(nn.ReLU()), nn.Bilinear(4, 4, 4), nn.Identity())
    return [bare, empty, integers, _Clamped(8, 8), *others]


def _is_plain(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, int, float, bool))
