"""What every part of the suite stands on: the settings, a layer, a wrapped model, an input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from quantlora.discovery.registration import registry
from quantlora.errors import MissingLibraryError
from quantlora.formats.quantizer import Quantizer
from quantlora.operations import reference
from quantlora.operations.subject import OneLayerModel
from quantlora.operations.trial import Trial
from quantlora.units import dtype_name

Shape = tuple[int, int]

#: Arguments of the tests, and the setting that each takes its values from.
_ARGUMENTS = {"shape": "held_shapes", "bias": "biases", "dtype": "dtypes"}


class SuiteBase:
    """The settings of a suite. Only ``quantizer`` has no default."""

    #: The quantizer's name, as users type it for ``backend=``.
    quantizer: ClassVar[str]
    #: ``(out_features, in_features)`` to try; those that `holds` refuses are left out.
    shapes: ClassVar[tuple[Shape, ...]] = ((128, 128), (96, 64), (40, 64), (33, 50), (1, 32))
    #: Whether a layer of this format can be with, and without, a bias.
    biases: ClassVar[tuple[bool, ...]] = (True, False)
    #: Dtypes of layers and of inputs.
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float32, torch.bfloat16, torch.float16)
    #: Largest relative error of outputs and gradients, by the dtype they are computed in.
    tolerances: ClassVar[Mapping[torch.dtype, float]] = {
        torch.float32: 1e-5,
        torch.bfloat16: 2e-2,
        torch.float16: 4e-3,
    }
    #: Options of `Quantizer.quantize` for the layers, to test one variant of the format.
    options: ClassVar[Mapping[str, Any]] = {}
    #: Fields of `LoraConfig` for every adapter, to hold a variant to the operations.
    adapter: ClassVar[Mapping[str, Any]] = {}
    #: Largest relative error (Frobenius) that packing may make; normal weights in 4 bits lose 0.1.
    closeness: ClassVar[float] = 0.15

    def holds(self, out_features: int, in_features: int) -> bool:
        """Whether the format can hold a weight of that shape."""
        return True

    def make_layer(
        self, out_features: int, in_features: int, bias: bool, dtype: torch.dtype
    ) -> nn.Module:
        """A layer of the format with random values; ``dtype`` is that of its float parts."""
        if not self.format.can_quantize:
            raise NotImplementedError(
                f"{self.quantizer!r} cannot quantize: override make_layer in your suite to build "
                f"a layer with random values."
            )
        linear = nn.Linear(in_features, out_features, bias, dtype=dtype)
        return self.format.quantize(linear, **self.options)

    @property
    def held_shapes(self) -> tuple[Shape, ...]:
        return tuple(shape for shape in self.shapes if self.holds(*shape))

    @property
    def format(self) -> Quantizer:
        return registry().quantizer(self.quantizer)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        for argument, setting in _ARGUMENTS.items():
            if argument in metafunc.fixturenames:
                metafunc.parametrize(argument, getattr(self, setting), ids=_id)

    @pytest.fixture(autouse=True)
    def _ready(self) -> None:
        """Skip where the library is missing; the same random values in every test."""
        try:
            registry().quantizer(self.quantizer)
        except MissingLibraryError as error:
            pytest.skip(str(error))
        torch.manual_seed(0)

    def layer(
        self, shape: Shape | None = None, bias: bool | None = None, dtype: torch.dtype | None = None
    ) -> nn.Module:
        """A layer from `make_layer`; what is not given is the first of its setting."""
        out_features, in_features = shape or self.held_shapes[0]
        bias = self.biases[0] if bias is None else bias
        return self.make_layer(out_features, in_features, bias, dtype or self.dtypes[0])

    def fields(self, adapter: str) -> Mapping[str, Any]:
        """Fields of `LoraConfig` for that adapter."""
        return self.adapter

    def trial(self, dtype: torch.dtype | None = None) -> Trial:
        """What operations are run on, in ``dtype`` or the first of the setting."""
        return Trial(self, dtype or self.dtypes[0])

    def wrapped(self, layer: nn.Module | None = None, **fields: Any) -> OneLayerModel:
        """A model with ``layer`` at ``proj`` and one adapter whose A and B are random."""
        return self.trial().wrapped(layer, **fields)

    def input(
        self, layer: nn.Module, *batch: int, dtype: torch.dtype | None = None, grad: bool = False
    ) -> Tensor:
        """Normal values ``(*batch, in_features)`` on the layer's device."""
        return self.trial(dtype).input(layer, *batch).requires_grad_(grad)

    def tolerance(self, layer: nn.Module, *dtypes: torch.dtype) -> float:
        """That of the coarsest dtype a product of ``layer`` goes through."""
        return self.trial().tolerance(layer, *dtypes)

    def check_output(self, model: OneLayerModel, x: Tensor, *dtypes: torch.dtype) -> None:
        """``model(x)`` against the reference over the layer's own weight."""
        lora = model.lora
        wanted = reference.output(lora, x, lora.active)
        error = reference.relative(model(x), wanted)
        assert error <= self.tolerance(lora.base_layer, x.dtype, *dtypes)


def _id(value: Any) -> str:
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return dtype_name(value)
