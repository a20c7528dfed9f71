"""NaN, infinity and numbers beyond a format: refused where they are packed, merged or combined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import quantlora
from quantlora.errors import AdapterError, AdapterWarning, BackendError, MergeError
from quantlora.formats.finite import check_packed
from quantlora.merging.merge_report import LayerMerge, MergeReport

PACKED = ["normalfloat", "bitsandbytes_4bit", "bitsandbytes_8bit"]
BAD = [float("nan"), float("inf")]
LAYERS: dict[str, Any] = {
    "linear": lambda: nn.Linear(64, 64),
    "conv": lambda: nn.Conv1d(4, 4, 3),
    "embedding": lambda: nn.Embedding(8, 4),
}


def wrapped(backend: str = "auto", kind: str = "linear", **fields: Any) -> nn.Sequential:
    torch.manual_seed(0)
    plain = nn.Sequential(LAYERS[kind]())
    return quantlora.wrap(plain, backend=backend, r=2, target_modules=["0"], **fields)


@torch.no_grad()
def spoil(model: nn.Module, value: float, name: str = "default") -> None:
    list(model[0].adapter_tensors(name).values())[1].view(-1)[0] = value


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("backend", ["auto", *PACKED])
@pytest.mark.parametrize("mode", ["requantize", "dequantize"])
def test_such_an_adapter_is_not_merged(backend: str, mode: str, value: float) -> None:
    model = wrapped(backend)
    spoil(model, value)
    before = model[0].base_layer
    with pytest.raises(MergeError, match="0: adapter 'default' holds NaN or infinite values"):
        quantlora.merge(model, mode=mode)
    assert model[0].base_layer is before
    assert not model[0].merged_adapters


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("dora", [False, True])
def test_of_two_adapters_the_spoilt_one_is_named(kind: str, dora: bool) -> None:
    model = wrapped(kind=kind, use_dora=dora)
    quantlora.wrap(model, adapter_name="good", r=2, target_modules=["0"])
    quantlora.set_adapter(model, ["good", "default"])
    spoil(model, float("nan"))
    with pytest.raises(MergeError, match="adapter 'default' holds NaN"):
        quantlora.merge(model)


@pytest.mark.parametrize("fields", [{"modules_to_save": ["1"]}, {"bias": "all"}])
def test_what_is_trained_besides_lora_is_looked_at_too(fields: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    quantlora.wrap(model, r=2, target_modules=["0"], **fields)
    trained = {n: p for n, p in model[1].named_parameters() if p.requires_grad and "bias" in n}
    with torch.no_grad():
        next(iter(trained.values()))[0] = float("nan")
    for merge in (quantlora.merge, quantlora.merge_and_unload):
        with pytest.raises(MergeError, match=r"adapter 'default' holds NaN or infinite .*bias"):
            merge(model)
    assert not model[0].merged_adapters


def test_a_base_that_is_spoilt_is_named() -> None:
    model = wrapped()
    with torch.no_grad():
        model[0].base_layer.weight[0, 0] = float("nan")
    with pytest.raises(MergeError, match="the base's weight holds NaN"):
        quantlora.merge(model)


def test_a_sum_beyond_half_precision_is_not_merged() -> None:
    model = wrapped().half()
    with torch.no_grad():
        for tensor in model[0].adapter_tensors("default").values():
            tensor.fill_(200.0)
    with pytest.raises(
        MergeError, match=r"infinite or NaN in format 'float' \(torch.float16\)|have"
    ):
        quantlora.merge(model)


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("backend", PACKED)
def test_such_a_weight_is_not_packed(backend: str, value: float) -> None:
    model = nn.Sequential(nn.Linear(64, 64))
    model[0].weight.data[3, 5] = value
    with pytest.raises(BackendError, match="0: the weight holds NaN or infinite values"):
        quantlora.wrap(model, backend=backend, r=2)
    with pytest.raises(BackendError, match="the weight holds NaN or infinite values"):
        quantlora.registry().quantizer(backend).quantize(model[0])


@pytest.mark.parametrize("scale", [1e5, 1e-10])
@pytest.mark.parametrize("backend", PACKED)
def test_any_scale_is_packed_to_the_same_relative_error(backend: str, scale: float) -> None:
    errors = []
    for factor in (1.0, scale):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64))
        weight = model[0].weight.data.mul_(factor).clone()
        quantlora.wrap(model, backend=backend, r=2)
        errors.append(float((model[0].dequantize() - weight).norm() / weight.norm()))
    assert errors[1] <= 1.05 * errors[0]


def test_a_format_that_makes_infinity_of_numbers_is_caught() -> None:
    """As one with scales in half precision would."""
    linear, float_format = nn.Linear(8, 8), quantlora.registry().quantizer("float")
    linear.weight.data.fill_(1e5)
    packed = float_format.quantize(linear, like=nn.Linear(8, 8).half())
    with pytest.raises(BackendError, match=r"up to 1e\+05\) are beyond the format's range"):
        check_packed(float_format, packed, linear.weight.detach(), "layer")


@pytest.mark.parametrize("kind", ["linear", "cat", "svd"])
def test_such_adapters_are_not_combined(kind: str) -> None:
    model = wrapped()
    quantlora.wrap(model, adapter_name="good", r=2, target_modules=["0"])
    spoil(model, float("nan"))
    with pytest.raises((AdapterError, RuntimeError)):
        quantlora.add_weighted_adapter(model, ["default", "good"], [1, 1], "sum", kind)
    assert "sum" not in model[0].adapters


def test_a_loss_that_is_no_number_is_said() -> None:
    assert MergeReport([LayerMerge("a", "float", 1.0, float("nan"))]).warning()


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("backend", ["auto", *PACKED])
def test_saving_such_an_adapter_says_so(backend: str, value: float, tmp_path: Path) -> None:
    model = wrapped(backend)
    spoil(model, value)
    with pytest.warns(AdapterWarning, match="saved with NaN or infinite values .*lora_B"):
        quantlora.save_adapter(model, tmp_path)


@pytest.mark.parametrize("kind", ["linear", "cat", "svd", "ties_svd", "magnitude_prune"])
def test_every_combination_refuses_such_an_adapter(kind: str) -> None:
    model = wrapped()
    quantlora.wrap(model, adapter_name="good", r=2, target_modules=["0"])
    spoil(model, float("nan"))
    with pytest.raises(AdapterError, match="would hold NaN or infinite values"):
        quantlora.add_weighted_adapter(
            model, ["default", "good"], [1.0, 1.0], "sum", combination_type=kind, density=0.5
        )
