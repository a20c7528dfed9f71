"""torchao's tensors: what they stand for, trained on, merged; or refused."""

from __future__ import annotations

from multiprocessing.reduction import ForkingPickler
from typing import Any

import pytest
import torch
from torch import nn

import quantlora
from quantlora import BackendError, registry
from quantlora.formats.flattened import count_bytes
from quantlora.testing.models import tiny_llama

pytest.importorskip("torchao", "0.15")

KINDS: list[dict[str, Any]] = [
    {"bits": 8},
    {"bits": 8, "group_size": 32},
    {"bits": 4, "group_size": 32},
    {"bits": 3},
    {"kind": "float8"},
]


@pytest.fixture(params=KINDS, ids=str)
def layer(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return registry().quantizer("torchao").quantize(nn.Linear(64, 48), **request.param)


def test_a_weight_is_what_the_library_dequantizes(layer) -> None:
    found = registry().match("", layer)
    assert found.name == "torchao"
    assert torch.allclose(found.dequantize(layer).float(), layer.weight.dequantize(), atol=1e-7)


def test_integers_are_a_grid(layer) -> None:
    found = registry().quantizer("torchao")
    affine = found.affine(layer)
    assert (affine is None) == (found.describe(layer)["kind"] == "float8")
    assert affine is None or torch.allclose(affine.dequantize(), found.dequantize(layer), atol=1e-7)


def test_another_weight_is_packed_with_the_same_settings(layer) -> None:
    found = registry().quantizer("torchao")
    again = found.quantize(nn.Linear(64, 48), like=layer)
    assert found.describe(again) == found.describe(layer)


def test_a_weight_takes_a_byte_and_its_scales(layer) -> None:
    held = count_bytes([layer.weight]) / (64 * 48)
    assert 1 <= held < 1.3


def test_a_model_of_the_library_is_trained_and_merged() -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model: Any = tiny_llama(num_hidden_layers=1)
    quantize_(model.model, Int8WeightOnlyConfig())
    quantlora.wrap(model, r=2, target_modules=["up_proj"])
    ids = torch.randint(3, 60, (2, 8))
    model.train()(input_ids=ids, labels=ids).loss.backward()
    B = model.model.layers[0].mlp.up_proj.lora_B["default"].weight
    assert B.grad.abs().sum() > 0
    torch.nn.init.normal_(B, std=0.05)
    wanted = model.eval()(ids).logits
    quantlora.merge_and_unload(model, mode="requantize")
    assert type(model.model.layers[0].mlp.up_proj.weight).__name__ == "Int8Tensor"
    assert torch.allclose(model(ids).logits, wanted, atol=0.05)


def test_nf4_is_read_and_not_packed() -> None:
    from torchao.quantization.quantize_.workflows.nf4.nf4_tensor import to_nf4

    linear, found = nn.Linear(64, 64, bias=False), registry().quantizer("torchao")
    weight = to_nf4(linear.weight.detach(), 32, 16)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    assert torch.equal(found.dequantize(linear), weight.get_original_weight())
    with pytest.raises(BackendError, match="nf4 weight can be read but not packed"):
        found.quantize(nn.Linear(64, 64, bias=False), like=linear)


def test_a_weight_that_quantizes_its_inputs_is_not_packed() -> None:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model, found = nn.Sequential(nn.Linear(64, 64)), registry().quantizer("torchao")
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    assert found.dequantize(model[0]).shape == (64, 64)
    with pytest.raises(BackendError, match="quantizes its inputs too"):
        found.quantize(nn.Linear(64, 64), like=model[0])


def test_a_kind_that_is_none_is_refused() -> None:
    with pytest.raises(BackendError, match="kind must be one of int8, intx, float8"):
        registry().quantizer("torchao").quantize(nn.Linear(8, 8), kind="int5")


def test_a_layer_packed_here_can_go_to_a_spawned_process(layer) -> None:
    assert ForkingPickler.dumps(layer)
