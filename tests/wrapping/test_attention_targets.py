"""`nn.MultiheadAttention` as a target: ``in_proj_weight`` and ``out_proj``, as PEFT has it."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

import quantlora
from quantlora.errors import AdapterError, ConfigError, LayerError, TargetError

FIELDS: dict[str, Any] = {
    "r": 3,
    "lora_alpha": 5,
    "target_modules": ["attn"],
    "init_lora_weights": False,
}
X = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(0))


def base(**fields: Any) -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({"attn": nn.MultiheadAttention(32, 4, **fields)})


def pair(**fields: Any) -> tuple[Any, nn.Module]:
    """The attention in PEFT and here, with the same A and B."""
    torch.manual_seed(1)
    theirs = peft.get_peft_model(base(**fields), peft.LoraConfig(**FIELDS)).base_model.model
    ours = quantlora.wrap(base(**fields), **FIELDS)
    values = {key: one for key, one in theirs.named_parameters() if "lora_" in key}
    for key, one in ours.named_parameters():
        if "lora_" in key:
            one.data.copy_(values[key.replace(".in_proj_weight", "")])
    return theirs["attn"], ours


def close(actual: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(actual, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("fields", [{}, {"batch_first": True}, {"bias": False}], ids=str)
def test_the_output_is_pefts(fields: dict[str, Any], train: bool, need_weights: bool) -> None:
    theirs, ours = pair(**fields)
    theirs.train(train), ours.train(train)
    wanted = theirs(X, X, X, need_weights=need_weights)
    with torch.set_grad_enabled(train):  # without gradients torch's kernel takes the weights
        found = ours["attn"](X, X, X, need_weights=need_weights)
    close(found[0], wanted[0])
    assert (found[1] is None) == (wanted[1] is None)
    if need_weights:
        close(found[1], wanted[1])


def test_gradients_are_those_of_the_output() -> None:
    """In float64, against a plain attention with PEFT's ``W + 2 s B A`` at ``out_proj``."""
    model = quantlora.wrap(base().double(), **FIELDS)
    attn, x = model["attn"], X.double()
    factors = {
        "in_proj_weight": [side["default"].in_proj_weight.weight for side in _sides(attn)],
        "out_proj.weight": [side["default"].weight for side in _sides(attn.base_layer.out_proj)],
    }
    plain = base().double()["attn"]
    times = {"in_proj_weight": 5 / 3, "out_proj.weight": 10 / 3}
    weights = {
        key: plain.get_parameter(key).detach() + times[key] * (B @ A)
        for key, (A, B) in factors.items()
    }
    parameters = [one for both in factors.values() for one in both]
    wanted = torch.func.functional_call(plain, weights, (x, x, x))[0].square().sum()
    found = attn(x, x, x)[0].square().sum()
    for one, two in zip(
        *(torch.autograd.grad(y, parameters) for y in (found, wanted)), strict=True
    ):
        torch.testing.assert_close(one, two)
        assert one.any()


def _sides(layer: nn.Module) -> tuple[Any, Any]:
    return layer.lora_A, layer.lora_B


def test_torchs_encoder_gives_what_it_gives_merged_also_without_gradients() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 48, 0.0, batch_first=True)
    fields = {**FIELDS, "target_modules": ["self_attn"]}
    ours = quantlora.wrap(copy.deepcopy(layer), **fields)
    plain = quantlora.merge_and_unload(copy.deepcopy(ours))
    close(ours(X), plain(X))
    with torch.no_grad():
        close(ours.eval()(X), plain.eval()(X))


def test_merged_weights_are_pefts_and_come_back_bit_for_bit() -> None:
    theirs, ours = pair()
    before = copy.deepcopy(ours.state_dict())
    theirs.merge()
    quantlora.merge(ours)
    attn = ours["attn"].base_layer
    close(attn.in_proj_weight, theirs.base_layer.in_proj_weight)
    close(attn.out_proj.base_layer.weight, theirs.base_layer.out_proj.base_layer.weight)
    quantlora.unmerge(ours)
    assert all(torch.equal(one, before[key]) for key, one in ours.state_dict().items())


def test_merged_and_unloaded_it_is_a_plain_attention() -> None:
    theirs, ours = pair()
    wanted = theirs(X, X, X)[0]
    names = [key for key, _ in base().named_parameters()]
    quantlora.merge_and_unload(ours)
    close(ours["attn"](X, X, X)[0], wanted)
    assert [key for key, _ in ours.named_parameters()] == names


def test_unloaded_it_is_as_it_was() -> None:
    model = quantlora.unload(quantlora.wrap(base(), **FIELDS))
    wanted = base().state_dict()
    assert all(torch.equal(one, wanted[key]) for key, one in model.state_dict().items())
    assert type(model["attn"]) is nn.MultiheadAttention


def test_rank_and_alpha_are_those_of_the_attentions_name() -> None:
    patterns = {"rank_pattern": {"attn": 2}, "alpha_pattern": {"attn": 8}}
    attn = quantlora.wrap(base(), **FIELDS, **patterns)["attn"]
    found = [(one.r, one.scaling["default"]) for one in (attn, attn.base_layer.out_proj)]
    assert found == [({"default": 2}, 4.0), ({"default": 2}, 8.0)]


@pytest.mark.parametrize("first", [["attn"], ["out_proj"]])
def test_a_second_adapter_goes_to_both_layers(first: list[str]) -> None:
    model = quantlora.wrap(base(), **{**FIELDS, "target_modules": first})
    quantlora.wrap(model, adapter_name="second", **FIELDS)
    quantlora.delete_adapter(model, "default")
    merged = quantlora.merge_and_unload(copy.deepcopy(model))
    close(model["attn"](X, X, X)[0], merged["attn"](X, X, X)[0])
    assert "second" in model["attn"].adapters
    assert "second" in model["attn"].base_layer.out_proj.adapters


def test_separate_projections_are_refused_with_the_names_to_give() -> None:
    model = base(kdim=24, vdim=40)
    with pytest.raises(LayerError, match=r"separate weights.*out_proj.*attn\.q_proj_weight"):
        quantlora.wrap(model, **FIELDS)
    parts = [f"attn.{one}_proj_weight" for one in "qkv"]
    quantlora.wrap(model, target_modules=["attn.out_proj"], target_parameters=parts)


@pytest.mark.parametrize("fields", [{"use_dora": True}, {"lora_bias": True}, {"bias": "all"}])
def test_what_an_attention_cannot_have_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="MultiheadAttention cannot have"):
        quantlora.wrap(base(), **FIELDS, **fields)


def test_adapters_of_attentions_are_not_combined_nor_swapped() -> None:
    model = quantlora.wrap(base(), **FIELDS)
    with pytest.raises(AdapterError, match="or a whole attention"):
        quantlora.add_weighted_adapter(model, ["default"], [1.0], "sum", "cat")
    with pytest.raises(AdapterError, match="a hot swap is of LoRA layers only"):
        quantlora.prepare_hot_swap(model, r=4)


@pytest.mark.parametrize("names", [["out_proj"], "all-linear"], ids=str)
def test_a_second_adapter_cannot_name_the_layer_inside_alone(names: Any) -> None:
    model = nn.Sequential(base()["attn"], nn.Linear(32, 32))
    quantlora.wrap(model, target_modules=["0"], r=3)
    with pytest.raises(TargetError, match=r"0.out_proj is inside 0, whose parameters have adap"):
        quantlora.wrap(model, adapter_name="two", target_modules=names, r=3)


def test_a_second_adapter_names_the_attention_as_the_first_did() -> None:
    model = quantlora.wrap(base(), **FIELDS)
    quantlora.wrap(model, adapter_name="two", **FIELDS)
    assert list(model["attn"].lora_A) == ["default", "two"]


def packed(backend: str) -> nn.ModuleDict:
    """An attention with a packed ``out_proj`` as the model came, adapted as a whole."""
    first, ours = (base(batch_first=True) for _ in range(2))
    quantlora.wrap(first, backend=backend, r=2, target_modules=["attn.out_proj"])
    ours["attn"].set_submodule("out_proj", first["attn"].out_proj.base_layer)
    return quantlora.wrap(ours, **FIELDS)


def merged_by_hand(ours: nn.ModuleDict) -> nn.Module:
    """torch's attention with the weights ``W + ΔW`` of ``ours``."""
    attn, out = ours["attn"], ours["attn"].base_layer.out_proj
    plain = base(batch_first=True)["attn"]
    names = attn.adapter_tensors("default")
    A, B = names["lora_A.weight"], names["lora_B.weight"]
    weight = out.dequantize() + out.delta_weight("default", out.dequantize())
    with torch.no_grad():
        plain.in_proj_weight += 5 / 3 * B @ A
        plain.out_proj.weight.copy_(weight)
    return plain


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("backend", ["bitsandbytes_4bit", "normalfloat"])
def test_a_packed_out_proj_is_read_as_numbers(backend: str, compiled: bool) -> None:
    ours = packed(backend)
    plain = merged_by_hand(ours)
    called = torch.compile(ours["attn"], backend="aot_eager") if compiled else ours["attn"]
    xs = [X.clone().requires_grad_() for _ in range(2)]
    ys = [one(x, x, x)[0] for one, x in zip((called, plain), xs, strict=True)]
    close(*ys)
    for y in ys:
        y.square().sum().backward()
    close(*[x.grad for x in xs])
    assert all(p.grad is not None for name, p in ours.named_parameters() if "lora_" in name)
    with torch.no_grad():
        close(called.eval()(X, X, X)[0], plain.eval()(X, X, X)[0])


def test_a_compiled_attention_follows_its_adapters() -> None:
    ours = quantlora.wrap(base(batch_first=True), **FIELDS)
    called = torch.compile(ours["attn"], backend="aot_eager")
    on = called(X, X, X)[0]
    close(on, merged_by_hand(ours)(X, X, X)[0])
    with quantlora.adapters_disabled(ours):
        close(called(X, X, X)[0], base(batch_first=True)["attn"](X, X, X)[0])
    quantlora.merge(ours)
    close(called(X, X, X)[0], on)
