"""HQQ's layers: what they hold, trained on, merged, saved, loaded again; or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import quantlora
from quantlora import BackendError, registry
from quantlora.testing.models import tiny_llama

pytest.importorskip("hqq")

UP = "model.layers.0.mlp.up_proj"


def packed(**options: Any) -> Any:
    torch.manual_seed(0)
    return registry().quantizer("hqq").quantize(nn.Linear(64, 64, bias=False), **options)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("axis", "size"), [(1, 32), (0, 32), (1, 24), (1, None), (0, 64)])
def test_a_weight_is_what_the_library_dequantizes(bits: int, axis: int, size: int | None) -> None:
    linear = nn.Linear(96, 64, bias=False)
    found = registry().quantizer("hqq")
    layer: Any = found.quantize(linear, bits=bits, axis=axis, group_size=size)
    assert torch.allclose(found.dequantize(layer), layer.dequantize(), atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_merge_without_an_update_changes_no_value(axis: int) -> None:
    found, layer = registry().quantizer("hqq"), packed(axis=axis, group_size=32)
    linear = nn.Linear(64, 64, bias=False)
    linear.weight.data = found.dequantize(layer)
    assert torch.equal(found.dequantize(found.quantize(linear, like=layer)), linear.weight)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_qalora_merges_exactly_in_the_format(bits: int) -> None:
    model = nn.Sequential(packed(bits=bits, group_size=32))
    fields: dict[str, Any] = {"r": 2, "target_modules": ["0"], "init_lora_weights": False}
    quantlora.wrap(model, use_qalora=True, **fields)
    wanted = model[0].dequantize() + model[0].delta_weight("default", model[0].dequantize())
    quantlora.merge(model, mode="exact")
    assert model[0].quantizer.name == "hqq"
    found = model[0].quantizer.dequantize(model[0].base_layer)
    assert torch.allclose(found, wanted.detach(), atol=1e-5)


def test_a_model_is_trained_merged_saved_and_loaded_again(tmp_path) -> None:
    model: Any = tiny_llama(num_hidden_layers=1)
    quantlora.wrap(model, backend="hqq", r=2, quantize_options={"group_size": 32})
    ids = torch.randint(3, 60, (2, 8))
    model.train()(input_ids=ids, labels=ids).loss.backward()
    B = model.get_submodule(UP).lora_B["default"].weight
    assert B.grad.abs().sum() > 0
    torch.nn.init.normal_(B, std=0.05)
    quantlora.merge_and_unload(model, mode="requantize")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "x")
    again: Any = quantlora.quantize(tiny_llama(num_hidden_layers=1), backend="hqq")
    again.load_state_dict(load_file(tmp_path / "x"))
    found = registry().quantizer("hqq")
    assert torch.equal(*(found.dequantize(part.get_submodule(UP)) for part in (model, again)))


def test_a_weight_takes_its_bits_and_its_share_of_the_grid() -> None:
    layer = packed(group_size=64)
    tensors = [*registry().quantizer("hqq").weight_tensors(layer)]
    assert sum(tensor.nbytes for tensor in tensors) == 64 * 64 / 2 + 64 * 2 * 4


#: What is broken, and what the error says of it.
BROKEN: dict[str, tuple[Callable[[Any], object], str]] = {
    "truncated": (
        lambda y: setattr(y, "W_q", nn.Parameter(y.W_q[:-1].clone(), False)),
        "W_q holds .* codes",
    ),
    "zero": (lambda y: y.meta["scale"].zero_(), "all zero, or not finite"),
    "infinite": (lambda y: y.meta["zero"].fill_(float("nan")), "all zero, or not finite"),
    "lost": (lambda y: y.meta.pop("zero"), "it has no zero"),
    "quantized": (lambda y: y.meta.update(quant_scale=True), "the library itself has given up"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_damaged_layer_is_refused_by_its_path(name: str) -> None:
    layer, (damage, message) = packed(group_size=32), BROKEN[name]
    damage(layer)
    with pytest.raises(BackendError, match=f"0: this HQQ layer cannot be read: .*{message}"):
        quantlora.wrap(nn.Sequential(layer), r=2, target_modules=["0"])


def test_groups_that_do_not_divide_the_weight_are_refused() -> None:
    with pytest.raises(BackendError, match="groups of 40 do not divide a weight of 64 x 64"):
        packed(group_size=40)
