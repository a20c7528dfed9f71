"""Is a layer taken by this quantizer, by no other, and only where its library is loaded?"""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import Tensor, nn

from quantlora.discovery.registration import registry
from quantlora.testing.base import Shape, SuiteBase


class _Clamped(nn.Linear):
    """A subclass with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(-1, 1)


class _Tagged(Tensor):
    """A tensor subclass of no library."""


class _Packed(nn.Module):
    """What a library for embeddings may have: codes, and a weight that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = 8, 8
        self.register_buffer("codes", torch.zeros(8, 4, dtype=torch.uint8))

    def weight(self) -> Tensor:  # torch.ao's quantized layers have it as a method
        raise RuntimeError("this build of torch has no kernel for it")


class _Raises(nn.Module):
    """A module whose weight cannot be looked at."""

    @property
    def weight(self) -> Tensor:
        raise AttributeError("gathered elsewhere")


def _odd_modules() -> dict[str, nn.Module]:
    """No layers of any format: without a weight, with integers in it, of classes near to linear."""
    bare, empty, integers, tagged = (nn.Linear(8, 8) for _ in range(4))
    del bare.weight
    empty.register_parameter("weight", None)
    integers.weight = nn.Parameter(torch.ones(8, 8, dtype=torch.int8), requires_grad=False)
    tagged.weight = nn.Parameter(torch.ones(8, 8).as_subclass(_Tagged), requires_grad=False)
    return {
        "no weight": bare,
        "weight is None": empty,
        "integer weight": integers,
        "weight of a tensor subclass": tagged,
        "weight without shape": nn.LazyLinear(8),
        "weight that cannot be read": _Raises(),
        "subclass with its own forward": _Clamped(8, 8),
        "quantized embedding": _Packed(),
        "attention": nn.MultiheadAttention(8, 2),
        "bilinear": nn.Bilinear(4, 4, 4),
        "norm": nn.LayerNorm(8),
        "container": nn.Sequential(nn.ReLU()),
        "nothing": nn.Identity(),
    }


def _floats() -> dict[str, nn.Module]:
    """Layers of the built-in float format, which no other may take."""
    return {
        "plain linear": nn.Linear(8, 8),
        "on the meta device": nn.Linear(8, 8, device="meta"),
        "embedding": nn.Embedding(8, 8),
        "convolution": nn.Conv1d(8, 8, 1),
    }


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
            taken = [kind for kind, layer in _floats().items() if self.format.matches(layer)]
            assert not taken

    @pytest.mark.parametrize("kind", _odd_modules())
    def test_other_modules_are_not_taken_and_do_no_harm(self, kind: str) -> None:
        """`matches` is asked about every module: it must answer, never raise."""
        assert not self.format.matches(_odd_modules()[kind])

    def test_a_layer_without_its_numbers_does_no_harm(self) -> None:
        """On the meta device, as while a checkpoint is loaded: what is taken has a shape."""
        layer = self.layer()
        shape, meta = self.format.shape(layer), copy.deepcopy(layer)
        try:
            meta.to("meta")
        except Exception as error:
            pytest.skip(f"the library cannot: {error}")
        if self.format.matches(meta):
            assert self.format.shape(meta) == shape

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


def _is_plain(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, int, float, bool))
