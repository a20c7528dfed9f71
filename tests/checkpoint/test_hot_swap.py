"""Hot swap: the values of another adapter, in place, without compiling again."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import quantlora
from quantlora.errors import AdapterError, QuantloraError
from quantlora.testing.models import tiny_llama
from tests.tools.peft_oracle import IDS, relative

TARGETS = ["q_proj", "up_proj", "embed_tokens"]
SLOT: dict[str, Any] = {"r": 2, "lora_alpha": 8, "target_modules": TARGETS}
OTHERS: dict[str, dict[str, Any]] = {
    "same": {"r": 2, "lora_alpha": 8},
    "other_scale": {"r": 2, "lora_alpha": 3},
    "larger": {"r": 6, "use_rslora": True},
    "patterns": {"r": 3, "rank_pattern": {"q_proj": 5}, "alpha_pattern": {"up_proj": 2}},
    "fewer_layers": {"r": 4, "target_modules": ["q_proj"]},
}


def adapted(**fields: Any) -> nn.Module:
    model = quantlora.wrap(tiny_llama(), **{**SLOT, "init_lora_weights": False, **fields})
    for name, parameter in model.named_parameters():
        if "lora_magnitude" in name or "lora_B.default.bias" in name:
            parameter.data += 0.3
    return model.eval()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits


def saved(folder: Path, **fields: Any) -> Tensor:
    """An adapter in ``folder``, and what the model computes with it."""
    torch.manual_seed(3)
    other = adapted(**fields)
    quantlora.save_adapter(other, folder)
    return logits(other)


@pytest.mark.parametrize("other", OTHERS)
def test_the_slot_computes_what_the_other_adapter_does(other: str, tmp_path: Path) -> None:
    wanted = saved(tmp_path, **OTHERS[other])
    model = adapted()
    quantlora.prepare_hot_swap(model, r=8)
    quantlora.hot_swap(model, tmp_path)
    assert relative(logits(model), wanted) <= 1e-5


@pytest.mark.parametrize("fields", [{"use_dora": True}, {"lora_bias": True}])
def test_variants_are_swapped_too(fields: dict[str, Any], tmp_path: Path) -> None:
    fields = {**fields, "target_modules": ["q_proj", "up_proj"]}
    wanted = saved(tmp_path, **fields, lora_alpha=3)
    model = adapted(**fields)
    quantlora.prepare_hot_swap(model, r=8)
    quantlora.hot_swap(model, tmp_path)
    assert relative(logits(model), wanted) <= 1e-5


def test_room_for_more_changes_nothing(tmp_path: Path) -> None:
    model = adapted(rank_pattern={"q_proj": 3}, alpha_pattern={"up_proj": 5})
    before = logits(model)
    quantlora.prepare_hot_swap(model, r=8)
    assert {layer.r["default"] for _, layer in quantlora.lora_layers(model)} == {8}
    assert relative(logits(model), before) <= 1e-6
    quantlora.save_adapter(model, tmp_path)
    fresh = quantlora.load_adapter(tiny_llama(), tmp_path)
    assert torch.equal(logits(fresh), logits(model))


def test_a_swapped_adapter_is_saved_as_what_it_computes(tmp_path: Path) -> None:
    wanted = saved(tmp_path / "other", **OTHERS["patterns"])
    model = adapted()
    quantlora.prepare_hot_swap(model, r=8)
    quantlora.hot_swap(model, tmp_path / "other")
    quantlora.save_adapter(model, tmp_path / "slot")
    fresh = quantlora.load_adapter(tiny_llama(), tmp_path / "slot")
    assert relative(logits(fresh), wanted) <= 1e-5


def test_convolutions_are_padded() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3))
    x = torch.randn(2, 4, 8, 8)
    quantlora.wrap(model, r=2, target_modules=["0"], init_lora_weights=False)
    before = model(x)
    quantlora.prepare_hot_swap(model, r=5)
    assert relative(model(x), before) <= 1e-6


GROUPED: dict[str, tuple[nn.Module, Tensor]] = {
    "conv1d": (nn.Conv1d(8, 8, 3, groups=4), torch.randn(2, 8, 9)),
    "conv2d": (nn.Conv2d(4, 8, 3, groups=2), torch.randn(2, 4, 8, 8)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4), torch.randn(2, 4, 8, 8)),
}


@pytest.mark.parametrize("kind", GROUPED)
def test_each_group_of_a_convolution_is_padded_and_swapped_by_itself(
    kind: str, tmp_path: Path
) -> None:
    layer, x = GROUPED[kind]
    models = [nn.Sequential(copy.deepcopy(layer)) for _ in range(2)]
    for model, alpha in zip(models, (8, 3), strict=True):
        given: dict[str, Any] = {"target_modules": ["0"], "init_lora_weights": False}
        quantlora.wrap(model, r=4, lora_alpha=alpha, **given)
    before = models[0](x)
    quantlora.prepare_hot_swap(models[0], r=9)
    assert models[0][0].r["default"] % models[0][0].base_layer.groups == 0
    assert relative(models[0](x), before) <= 1e-5
    quantlora.save_adapter(models[1], tmp_path)
    quantlora.hot_swap(models[0], tmp_path)
    assert relative(models[0](x), models[1](x)) <= 1e-5


@pytest.mark.parametrize("backend", ["auto", "bitsandbytes_4bit"])
def test_a_compiled_model_is_not_compiled_again(backend: str, tmp_path: Path) -> None:
    from torch._dynamo.testing import CompileCounter

    targets = {"target_modules": ["q_proj", "up_proj"]}
    saved(tmp_path, **OTHERS["larger"], **targets)
    model = adapted(backend=backend, **targets)
    quantlora.prepare_hot_swap(model, r=8)
    torch.compiler.reset()
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter)
    before = logits(compiled)
    graphs = counter.frame_count
    quantlora.hot_swap(model, tmp_path)
    after = logits(compiled)
    assert graphs > 0
    assert counter.frame_count == graphs
    assert relative(after, logits(model)) <= 1e-5
    assert not torch.allclose(before, after)


#: A layer of each type, an input for it, and settings of both adapters.
TYPES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "linear": (nn.Linear(32, 32), torch.randn(2, 32), {}),
    "bias": (nn.Linear(32, 32), torch.randn(2, 32), {"lora_bias": True}),
    "dora": (nn.Linear(32, 32), torch.randn(2, 32), {"use_dora": True}),
    "packed": (nn.Linear(64, 64), torch.randn(2, 64), {"backend": "normalfloat"}),
    "embedding": (nn.Embedding(20, 16), torch.arange(8).reshape(2, 4), {}),
    "conv1d": (nn.Conv1d(8, 8, 3), torch.randn(2, 8, 9), {}),
    "conv2d": (nn.Conv2d(8, 8, 3), torch.randn(2, 8, 9, 9), {}),
    "conv3d": (nn.Conv3d(8, 8, 2), torch.randn(2, 8, 4, 4, 4), {}),
}


@pytest.mark.parametrize("kind", TYPES)
def test_no_type_of_layer_is_compiled_again(kind: str, tmp_path: Path) -> None:
    from torch._dynamo.testing import CompileCounter

    layer, x, fields = TYPES[kind]
    given: dict[str, Any] = {"target_modules": ["0"], "init_lora_weights": False, **fields}
    models = [nn.Sequential(copy.deepcopy(layer)) for _ in range(2)]
    for one, r in zip(models, (2, 5), strict=True):
        quantlora.wrap(one, r=r, lora_alpha=3, **given)
    quantlora.save_adapter(models[1], tmp_path)
    quantlora.prepare_hot_swap(models[0], r=6)
    torch.compiler.reset()
    counter = CompileCounter()
    compiled = torch.compile(models[0], backend=counter)
    before, graphs = compiled(x), counter.frame_count
    quantlora.hot_swap(models[0], tmp_path)
    assert relative(compiled(x), models[1](x)) <= 1e-5
    assert relative(before, models[1](x)) > 1e-3
    assert counter.frame_count == graphs > 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": 9}, r"prepare_hot_swap\(model, r=9\)"),
        ({"use_dora": True, "target_modules": ["q_proj"]}, "variant"),
        ({"target_modules": ["down_proj"]}, "layers of the adapter"),
        ({"lora_bias": True, "target_modules": ["q_proj"]}, "lora_bias"),
        ({"modules_to_save": ["norm"]}, "modules_to_save"),
    ],
)
def test_what_does_not_fit_changes_nothing(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    saved(tmp_path, **fields)
    model = adapted()
    quantlora.prepare_hot_swap(model, r=4)
    before = logits(model)
    with pytest.raises(AdapterError, match=message):
        quantlora.hot_swap(model, tmp_path)
    assert torch.equal(logits(model), before)


#: What is done to the tensors of a good file, and what the error says.
DAMAGES: dict[str, tuple[Any, str]] = {
    "no A": (lambda key, t: None if "lora_A" in key else t, "lora_A.weight"),
    "no B": (lambda key, t: None if "lora_B" in key else t, "lora_B.weight"),
    "no magnitude": (lambda key, t: None if "magnitude" in key else t, "magnitude"),
    "B of a lower rank": (lambda key, t: t[:, :1] if "lora_B" in key else t, "lora_B.weight"),
    "another rank": (
        lambda key, t: t[:1] if "lora_A" in key else t[:, :1] if "lora_B" in key else t,
        "lora_A.weight",
    ),
    "narrower": (lambda key, t: t[:, :-8] if "lora_A" in key else t, "lora_A.weight"),
    "shorter": (lambda key, t: t[:-8] if "lora_B" in key else t, "lora_B.weight"),
    "flat": (lambda key, t: t.flatten(), "lora_A.weight"),
    "one layer less": (lambda key, t: None if "0.self_attn" in key else t, "lacks|not those"),
    "a value too large": (lambda key, t: t.double() * 1e200, "cannot hold"),
}


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("what", DAMAGES)
def test_files_that_do_not_fit_change_nothing(what: str, use_dora: bool, tmp_path: Path) -> None:
    if what == "no magnitude" and not use_dora:
        pytest.skip("plain LoRA has none")
    change, message = DAMAGES[what]
    fields: dict[str, Any] = {"use_dora": use_dora, "target_modules": ["q_proj", "up_proj"]}
    saved(tmp_path, **fields)
    file = tmp_path / "adapter_model.safetensors"
    tensors = {key: change(key, tensor) for key, tensor in load_file(file).items()}
    save_file({key: t.contiguous() for key, t in tensors.items() if t is not None}, file)
    model = adapted(**fields)
    before = logits(model)
    with pytest.raises(QuantloraError, match=message):
        quantlora.hot_swap(model, tmp_path)
    assert torch.equal(logits(model), before)


def test_a_scale_is_applied_in_the_precision_of_the_slot(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    quantlora.wrap(model, r=2, lora_alpha=1e-4, init_lora_weights=False)
    other = nn.Sequential(nn.Linear(8, 8)).half()
    quantlora.wrap(other, r=2, lora_alpha=1e4, init_lora_weights=False)
    quantlora.save_adapter(other, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    halves = {key: tensor.half() for key, tensor in load_file(file).items()}
    save_file(halves, file)
    quantlora.hot_swap(model, tmp_path)
    A, B = (t.double() for _, t in sorted(halves.items()))
    wanted = 1e4 / 2 * (B @ A)
    assert relative(model[0].delta_weight("default", model[0].dequantize()), wanted) <= 1e-5


def test_a_slot_without_an_effect_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    model = adapted()
    for _, layer in quantlora.lora_layers(model):
        layer.scaling["default"] = 0.0
    with pytest.raises(AdapterError, match="scale is 0"):
        quantlora.hot_swap(model, tmp_path)


def test_a_merged_slot_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    model = adapted()
    quantlora.merge(model)
    with pytest.raises(AdapterError, match="merged"):
        quantlora.hot_swap(model, tmp_path)
