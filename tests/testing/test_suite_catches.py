"""The conformance suite bites: each fault of a format is found by the test that is meant for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quantlora import (
    AffineWeight,
    InferenceCopy,
    PackedState,
    Quantizer,
    dense_copy,
    registry,
)
from quantlora.testing import QuantizerSuite


class Codes(nn.Module):
    """int8 codes (out, in) and one scale for each row."""

    def __init__(self, codes: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = codes.shape
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, (self.codes * self.scale).to(x.dtype), self.bias)


class Sound(Quantizer):
    """A format without fault; the faulty ones differ from it in one method."""

    name = "sound"
    module = "torch"

    def layer_types(self) -> tuple[type[nn.Module], ...]:
        return (Codes,)

    def dequantize(self, layer: nn.Module) -> Tensor:
        return layer.codes * layer.scale

    def quantize(self, linear: nn.Linear, like: Any = None, **options: Any) -> nn.Module:
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(1, keepdim=True) / 127
        bias = None if linear.bias is None else linear.bias.detach().clone()
        return Codes((weight / scale).round().to(torch.int8), scale, bias)


Found = tuple[type[Quantizer], str, dict[str, Any]]
FAULTS: list[Found] = []


def found_by(test: str, **arguments: Any) -> Callable[[type[Quantizer]], type[Quantizer]]:
    """Note that ``test`` of the suite must fail on the format."""

    def note(quantizer: type[Quantizer]) -> type[Quantizer]:
        FAULTS.append((quantizer, test, arguments))
        return quantizer

    return note


DEFAULT = {"shape": (40, 64), "dtype": torch.float32}


@found_by("test_exactly_one_quantizer_takes_the_layer", bias=True, **DEFAULT)
class TooNarrow(Sound):
    def matches(self, layer: nn.Module) -> bool:
        return False


@found_by("test_a_plain_linear_is_not_taken")
class TooWide(Sound):
    def matches(self, layer: nn.Module) -> bool:
        return isinstance(layer, (Codes, nn.Linear))


@found_by("test_other_modules_are_not_taken_and_do_no_harm", kind="quantized embedding")
class LooksAtEverything(Sound):
    """A weight need be no tensor."""

    def matches(self, layer: nn.Module) -> bool:
        weight = getattr(layer, "weight", None)
        return weight is not None and weight.dtype == torch.int8 and isinstance(layer, Codes)


@found_by("test_other_modules_are_not_taken_and_do_no_harm", kind="integer weight")
class TakesIntegers(Sound):
    """A linear layer with an integer weight may be of any format."""

    def matches(self, layer: nn.Module) -> bool:
        weight = getattr(layer, "weight", None)
        return weight is not None and weight.dtype == torch.int8


@found_by("test_the_bias_is_found", bias=True)
class LosesBias(Sound):
    def bias(self, layer: nn.Module) -> None:
        return None


@found_by("test_it_gives_a_float_matrix", **DEFAULT)
class Transposed(Sound):
    def dequantize(self, layer: nn.Module) -> Tensor:
        return super().dequantize(layer).t()


@found_by("test_it_does_not_change_the_layer")
class Overwrites(Sound):
    def dequantize(self, layer: nn.Module) -> Tensor:
        return layer.scale.mul_(1.5) * layer.codes


@found_by("test_it_is_the_same_in_train_and_eval_mode")
class DependsOnMode(Sound):
    def dequantize(self, layer: nn.Module) -> Tensor:
        return super().dequantize(layer) * (1 if layer.training else 2)


@found_by("test_it_comes_in_the_dtype_asked_for", wanted=torch.bfloat16)
class IgnoresDtype(Sound):
    def dequantize_to(self, layer: nn.Module, dtype: torch.dtype) -> Tensor:
        return self.dequantize(layer)


@found_by("test_the_weight_stays_close", **DEFAULT)
class Coarse(Sound):
    def dequantize(self, layer: nn.Module) -> Tensor:
        return super().dequantize(layer).mul(2).round() / 2


@found_by("test_the_float_layer_is_left_as_it_is")
class ScalesItsInput(Sound):
    def quantize(self, linear: nn.Linear, like: Any = None, **options: Any) -> nn.Module:
        packed = super().quantize(linear)
        linear.weight.data.zero_()
        return packed


@found_by("test_the_bits_are_those_asked_for")
class IgnoresBits(Sound):
    """Packs int8, whatever it is asked for."""

    bits = (4, 8)

    def describe(self, layer: nn.Module) -> dict[str, Any]:
        return {"bits": 8}


@found_by("test_generation_gives_what_training_gives", dtype=torch.float32)
@found_by("test_any_shape_of_input_without_gradients", kind="3-D")
class WrongKernel(Sound):
    def matmul(self, layer: nn.Module, x: Tensor) -> Tensor:
        return x @ self.dequantize(layer).t() * 1.01


@found_by("test_they_are_right_after", order=("generate", "train"), dtype=torch.float32)
class RepacksInGeneration(Sound):
    """What some libraries do to a layer that is used without gradients."""

    def matmul(self, layer: nn.Module, x: Tensor) -> Tensor:
        y = x @ self.dequantize(layer).t()
        layer.codes = layer.codes.roll(1, 0)
        return y


@found_by("test_the_dequantized_weight_is_freed_after_forward")
class Caches(Sound):
    def dequantize(self, layer: nn.Module) -> Tensor:
        if not hasattr(layer, "cache"):
            layer.cache = super().dequantize(layer)
        return layer.cache


@found_by("test_operation", name="unmerge", dtype=torch.float32)
class PacksInPlace(Sound):
    def quantize(self, linear: nn.Linear, like: Any = None, **options: Any) -> nn.Module:
        packed = super().quantize(linear)
        if like is not None:
            like.codes.copy_(packed.codes)
        return packed


class OnAGrid(Sound):
    def group_size(self, layer: nn.Module) -> int:
        return int(layer.in_features)

    def affine(self, layer: nn.Module) -> AffineWeight:
        zeros = torch.full_like(layer.scale, self.zero)
        codes = (layer.codes.to(torch.int16) + 128).to(torch.uint8)
        return AffineWeight(codes, layer.scale, zeros, 8, layer.in_features)

    zero = 128


@found_by("test_affine_is_the_weight", **DEFAULT)
class WrongGrid(OnAGrid):
    zero = 127


@found_by("test_from_affine_holds_any_zero_point", bias=True)
class RoundsZeros(OnAGrid):
    def from_affine(self, weight: AffineWeight, bias: Tensor | None) -> nn.Module:
        codes = weight.codes.to(torch.int16) - weight.zeros.round().to(torch.int16)
        return Codes(codes.to(torch.int8), weight.scales, bias)


@found_by("test_a_packed_state_is_the_layer", bias=True, dtype=torch.float32)
class LosesBiasInFiles(Sound):
    def packed_state(self, layer: nn.Module) -> PackedState:
        return PackedState({}, {"codes": layer.codes, "scale": layer.scale})

    def from_packed_state(self, state: PackedState) -> nn.Module:
        return Codes(state.tensors["codes"], state.tensors["scale"], None)


@found_by("test_generation_follows_the_layer_s_tensors")
class KeepsOldCopies(Sound):
    def inference_copy(self, layer: nn.Module, dtype: torch.dtype) -> InferenceCopy:
        return dense_copy(partial(self.dequantize_to, layer, dtype), self.shape(layer), dtype)

    def weight_tensors(self, layer: nn.Module) -> list[Tensor]:
        return []


@found_by("test_unload_gives_the_layer_back_as_it_was")
class LeavesATrace(Sound):
    def prepare(self, layer: nn.Module, path: str) -> None:
        layer.prepared = True


@pytest.mark.parametrize(
    ("quantizer", "test", "arguments"), FAULTS, ids=[f[0].__name__ for f in FAULTS]
)
def test_a_fault_is_found(
    quantizer: type[Quantizer],
    test: str,
    arguments: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(registry().quantizers, "sound", quantizer())
    suite = QuantizerSuite()
    suite.quantizer = "sound"
    if "monkeypatch" in getattr(QuantizerSuite, test).__code__.co_varnames:
        arguments = {**arguments, "monkeypatch": monkeypatch}
    with pytest.raises((AssertionError, AttributeError)):
        getattr(suite, test)(**arguments)


@pytest.fixture
def sound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry().quantizers, "sound", Sound())


@pytest.mark.usefixtures("sound")
class TestWithoutFault(QuantizerSuite):
    """So that what is found above is the fault and nothing else."""

    quantizer = "sound"

    @pytest.fixture(autouse=True)
    def _ready(self, sound: None) -> None:
        torch.manual_seed(0)
