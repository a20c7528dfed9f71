"""quanto's layers: what they hold, trained on, merged, saved, loaded again; or refused."""

from __future__ import annotations

import copy
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import quantlora
from quantlora import BackendError, registry
from quantlora.testing.models import tiny_llama

pytest.importorskip("optimum.quanto")

UP = "model.layers.0.mlp.up_proj"
KINDS = ["int2", "int4", "int8", "float8"]


def theirs(kind: str, columns: int = 64, rows: int = 48, **options: Any) -> Any:
    """A layer of the library's own making."""
    from optimum.quanto import QLinear, qtypes

    torch.manual_seed(0)
    qtype = qtypes[{"float8": "qfloat8_e4m3fn"}.get(kind, f"q{kind}")]
    layer = QLinear.from_module(nn.Linear(columns, rows), weights=qtype, **options)
    layer.freeze()
    return layer


@pytest.mark.parametrize("kind", ["int8", "float8", "float8_e5m2"])
@pytest.mark.parametrize("rows", [48, 1])
def test_a_weight_is_what_the_library_dequantizes(kind: str, rows: int) -> None:
    layer, found = theirs(kind, rows=rows), registry().quantizer("quanto")
    assert torch.equal(found.dequantize(layer), layer.weight.dequantize())


@pytest.mark.slow  # the library compiles its kernel
@pytest.mark.parametrize("kind", ["int2", "int4"])
@pytest.mark.parametrize("columns", [50, 128, 192, 256])
def test_low_bits_are_what_the_library_dequantizes(kind: str, columns: int) -> None:
    layer, found = theirs(kind, columns), registry().quantizer("quanto")
    assert torch.allclose(found.dequantize(layer), layer.weight.dequantize(), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [64, 192])
def test_it_is_packed_as_the_library_packs(kind: str, columns: int) -> None:
    layer, found = theirs(kind, columns), registry().quantizer("quanto")
    torch.manual_seed(0)
    mine: Any = found.quantize(nn.Linear(columns, 48), weights=kind)
    assert found.describe(mine) == found.describe(layer)
    assert torch.allclose(found.dequantize(mine), found.dequantize(layer), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_merge_without_an_update_changes_no_value(kind: str) -> None:
    layer, found = theirs(kind, 192), registry().quantizer("quanto")
    linear = nn.Linear(192, 48, bias=False)
    linear.weight.data = found.dequantize(layer)
    again = found.quantize(linear, like=layer)
    assert torch.allclose(found.dequantize(again), linear.weight, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_zeros_stays_zero(kind: str) -> None:
    linear, found = nn.Linear(64, 8), registry().quantizer("quanto")
    linear.weight.data[3] = 0
    assert not found.dequantize(found.quantize(linear, weights=kind))[3].any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_with_an_adapter_is_copied(kind: str) -> None:
    model = quantlora.wrap(nn.Sequential(theirs(kind)), r=2, target_modules=["0"])
    twin, x = copy.deepcopy(copy.deepcopy(model)), torch.randn(2, 64)
    assert torch.equal(twin(x), model(x))


@pytest.mark.parametrize("kind", ["int2", "int4", "int8"])  # torch pickles no 8-bit floats
def test_a_layer_with_an_adapter_is_pickled(kind: str) -> None:
    model = quantlora.wrap(nn.Sequential(theirs(kind)), r=2, target_modules=["0"])
    twin, x = pickle.loads(pickle.dumps(model)), torch.randn(2, 64)
    assert torch.equal(twin(x), model(x))


def test_a_layer_that_can_be_copied_does_not_hold_itself() -> None:
    layer = registry().quantizer("quanto").quantize(nn.Linear(8, 8))
    gone = weakref.ref(layer)
    del layer
    assert gone() is None


def test_an_unloaded_layer_is_as_it_was() -> None:
    layer = theirs("int8")
    before = dict(vars(layer))
    model = quantlora.wrap(nn.Sequential(layer), r=2, target_modules=["0"])
    quantlora.unload(model)
    assert model[0] is layer
    assert vars(layer).keys() == before.keys()


def test_a_model_is_trained_merged_saved_and_loaded_again(tmp_path) -> None:
    model: Any = tiny_llama(num_hidden_layers=1)
    quantlora.wrap(model, backend="quanto", r=2)
    ids = torch.randint(3, 60, (2, 8))
    model.train()(input_ids=ids, labels=ids).loss.backward()
    B = model.get_submodule(UP).lora_B["default"].weight
    assert B.grad.abs().sum() > 0
    torch.nn.init.normal_(B, std=0.05)
    quantlora.merge_and_unload(model, mode="requantize")
    torch.save(model.state_dict(), tmp_path / "x")
    again: Any = quantlora.quantize(tiny_llama(num_hidden_layers=1), backend="quanto")
    again.load_state_dict(torch.load(tmp_path / "x"))
    assert torch.equal(model.eval()(ids).logits, again.eval()(ids).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_checkpoint_holds_it_bit_for_bit(kind: str, tmp_path) -> None:
    options = {"weights": kind}
    model: Any = tiny_llama(num_hidden_layers=1)
    quantlora.quantize(model, backend="quanto", quantize_options=options)
    quantlora.save_packed(model, tmp_path / "packed")
    again: Any = quantlora.load(tmp_path / "packed")
    mine, theirs = model.state_dict(), again.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(bytes_of(mine[name]), bytes_of(theirs[name])) for name in mine)
    dequantize = registry().quantizer("quanto").dequantize
    assert torch.equal(*(dequantize(each.get_submodule(UP)) for each in (model, again)))


def bytes_of(tensor: Any) -> Any:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("kind", ["int2", "int4", "int8"])
@pytest.mark.parametrize("columns", [64, 192])
def test_its_grid_is_the_weight_rows_of_one_value_too(kind: str, columns: int) -> None:
    from optimum.quanto import QLinear, qtypes

    linear, found = nn.Linear(columns, 48), registry().quantizer("quanto")
    linear.weight.data[3] = 0.25  # the library's scale of this row is 0 below 8 bits
    layer = QLinear.from_module(linear, weights=qtypes[f"q{kind}"])
    layer.freeze()
    affine = found.affine(layer)
    assert torch.allclose(affine.dequantize(), found.dequantize(layer), rtol=1e-6, atol=1e-7)


def test_qa_lora_is_merged_exactly() -> None:
    model = nn.Sequential(theirs("int4", 192))
    fields = {"use_qalora": True, "init_lora_weights": False, "target_modules": ["0"]}
    quantlora.wrap(model, r=2, **fields)
    x = torch.randn(4, 192)
    wanted = model(x)
    quantlora.merge_and_unload(model, mode="exact")
    assert torch.allclose(model(x), wanted, atol=1e-5)


@pytest.mark.parametrize(("kind", "wanted"), [("int4", 48 * 64 // 2 + 48 * 8), ("int8", 48 * 68)])
def test_a_weight_takes_its_bits_and_its_scales(kind: str, wanted: int) -> None:
    assert held(theirs(kind).weight) == wanted


def held(tensor: Any) -> int:
    """Bytes of the tensors within."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return int(tensor.nbytes)
    return sum(held(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])


def unfrozen() -> Any:
    from optimum.quanto import QLinear, qint8

    return QLinear.from_module(nn.Linear(64, 48), weights=qint8)


def with_inputs() -> Any:
    from optimum.quanto import qint8

    return theirs("int8", activations=qint8)


def not_finite() -> Any:
    layer = theirs("int8")
    layer.weight._scale.fill_(float("nan"))
    return layer


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "unfrozen": (unfrozen, r"freeze\(model\) first"),
    "inputs": (with_inputs, "inputs are quantized too"),
    "not finite": (not_finite, "not finite"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_layer_that_cannot_be_used_is_refused_by_its_path(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(BackendError, match=f"0: this layer of quanto's .*{message}"):
        quantlora.wrap(nn.Sequential(make()), r=2, target_modules=["0"])


def test_a_mistyped_type_is_refused() -> None:
    with pytest.raises(BackendError, match="weights must be one of int2, int4, int8, float8"):
        registry().quantizer("quanto").quantize(nn.Linear(8, 8), weights="int3")
