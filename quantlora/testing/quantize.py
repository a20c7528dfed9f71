"""`Quantizer.quantize`: for formats that can pack a float layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quantlora.errors import BackendError
from quantlora.formats.layouts import linear_from
from quantlora.operations.subject import OneLayerModel
from quantlora.testing.base import Shape, SuiteBase
from quantlora.wrapped_model import wrap


class QuantizeTests(SuiteBase):
    """Skipped for a format that only reads. When one fails, look at ``quantize``."""

    @pytest.fixture
    def can_quantize(self) -> None:
        if not self.format.can_quantize:
            pytest.skip(f"{self.quantizer!r} only reads layers")

    @pytest.mark.usefixtures("can_quantize")
    def test_the_weight_stays_close(self, shape: Shape, dtype: torch.dtype) -> None:
        """Above ``closeness`` the packing and `dequantize` disagree, or the scales are wrong."""
        linear = self._linear(shape, dtype=dtype)
        with torch.no_grad():  # each row of another size: a neighbour's scale does not fit
            linear.weight *= torch.logspace(-1, 1, shape[0]).to(linear.weight)[:, None]
        weight = self.format.dequantize(self.format.quantize(linear))
        assert _distance(weight, linear.weight) <= self.closeness

    @pytest.mark.usefixtures("can_quantize")
    def test_the_bias_is_carried_over(self, bias: bool) -> None:
        linear = self._linear(bias=bias)
        carried = self.format.bias(self.format.quantize(linear))
        assert (carried is not None) == bias
        assert carried is None or torch.equal(carried, linear.bias.to(carried.dtype))

    @pytest.mark.usefixtures("can_quantize")
    def test_the_float_layer_is_left_as_it_is(self) -> None:
        """`wrap` must be able to give the float layer back when a later layer fails."""
        linear = self._linear()
        before = {name: value.clone() for name, value in linear.state_dict().items()}
        packed = self.format.quantize(linear)
        self.format.dequantize(packed)
        assert packed is not linear
        assert all(torch.equal(value, before[name]) for name, value in linear.state_dict().items())

    @pytest.mark.usefixtures("can_quantize")
    def test_the_bits_are_those_asked_for(self) -> None:
        """``quantize(bits=)`` is taken where ``bits`` has several, and `describe` says them."""
        for bits in self.format.bits:
            options: dict[str, Any] = {"bits": bits} if len(self.format.bits) > 1 else {}
            packed = self.format.quantize(self._linear(), **options)
            assert self.format.describe(packed).get("bits") == bits

    @pytest.mark.usefixtures("can_quantize")
    def test_an_unknown_option_is_refused(self) -> None:
        """A mistyped option would pack with other settings than were asked for."""
        fields: dict[str, Any] = {"target_modules": ["proj"], "backend": self.quantizer}
        with pytest.raises(BackendError, match="has no option 'no_such_option'"):
            wrap(OneLayerModel(self._linear()), quantize_options={"no_such_option": 1}, **fields)

    @pytest.mark.usefixtures("can_quantize")
    def test_like_takes_the_settings_of_another_layer(self, dtype: torch.dtype) -> None:
        """Merging packs with the settings of the layer it merges into."""
        layer = self.layer(dtype=dtype)
        weight = self.format.dequantize(layer)
        again = self.format.quantize(linear_from(weight, self.format.bias(layer)), like=layer)
        assert type(again) is type(layer)
        assert self.format.describe(again) == self.format.describe(layer)
        assert self.format.compute_dtype(again) == self.format.compute_dtype(layer)
        assert _distance(self.format.dequantize(again), weight) <= self.closeness

    @pytest.mark.usefixtures("can_quantize")
    def test_wrap_quantizes_a_float_model_when_asked(self, shape: Shape) -> None:
        """``wrap(model, backend="<name>")`` on float layers."""
        fields: dict[str, Any] = {"target_modules": ["proj"], "r": 1, "backend": self.quantizer}
        model = wrap(OneLayerModel(self._linear(shape)), **fields)
        assert model.lora.quantizer.name == self.quantizer
        assert tuple(model(self.input(model.lora.base_layer, 2)).shape) == (2, shape[0])

    def _linear(
        self, shape: Shape | None = None, bias: bool | None = None, dtype: torch.dtype | None = None
    ) -> nn.Linear:
        out_features, in_features = shape or self.held_shapes[0]
        bias = self.biases[0] if bias is None else bias
        factory_kwargs = {
            "dtype": dtype or self.dtypes[0],
            "device": self.format.device(self.layer()),
        }
        return nn.Linear(in_features, out_features, bias, **factory_kwargs)


def _distance(weight: Tensor, wanted: Tensor) -> float:
    wanted = wanted.detach().double()
    return float((weight.double() - wanted).norm() / wanted.norm())
