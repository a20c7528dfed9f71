"""Packed experts against float64 experts of the same dequantized values."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import quantlora
from quantlora.errors import BackendError
from quantlora.experts.packed import PackedExperts
from quantlora.experts.stacks_format import whole_weights
from tests.tools.expert_models import BOTH, gpt_oss, mixtral
from tests.tools.expert_modules import adapted, by_whole_weights, expert_module, rows_for

CLOSE: dict[str, float] = {"rtol": 1e-5, "atol": 1e-5}
LAYOUTS = ("qwen3_moe", "gpt_oss", "llama4_text", "nemotron_h")
FORMATS: list[tuple[str, dict[str, Any]]] = [
    *[("normalfloat", {"bits": bits, "block_size": 8}) for bits in (2, 3, 4, 8)],
    ("normalfloat", {"double_quant": True}),
    ("normalfloat", {"quant_type": "uniform"}),
    ("bitsandbytes_4bit", {}),
    ("bitsandbytes_4bit", {"compress_statistics": False, "quant_type": "fp4", "blocksize": 32}),
]


def packed(family: str = "qwen3_moe", backend: str = "normalfloat", **options: Any) -> Any:
    return adapted(expert_module(family), backend=backend, quantize_options=options)


def twin(layer: Any) -> Any:
    """The same adapters over float experts, in float64."""
    new = copy.deepcopy(layer)
    new.base_layer = layer.base_layer.unpacked(whole_weights(layer.base_layer)).double()
    return new.double()


def check(layer: Any) -> None:
    """Output and gradients, of the input and the adapters."""
    other = twin(layer)
    rows = rows_for(other.base_layer)
    results = []
    for one, run in ((layer, layer), (other, lambda *x: by_whole_weights(other, ("default",), *x))):
        inputs = [x for x in (*rows, *one.parameters()) if x.requires_grad]
        y = run(*rows)
        results.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    for found, wanted in zip(*results, strict=True):
        assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-5


@pytest.mark.parametrize("family", LAYOUTS)
@pytest.mark.parametrize(("backend", "options"), FORMATS[2::4])
def test_every_layout_computes_as_its_float_values(family: str, backend: str, options: Any) -> None:
    model = packed(family, backend, **options)
    assert len(model.experts.base_layer.stacks) == 2
    check(model.experts)


@pytest.mark.parametrize(("backend", "options"), FORMATS)
def test_every_format_computes_as_its_float_values(backend: str, options: Any) -> None:
    check(packed("qwen3_moe", backend, **options).experts)


@pytest.mark.parametrize(("backend", "options"), FORMATS)
def test_each_expert_is_packed_by_itself(backend: str, options: Any) -> None:
    """As a layer with its weight alone is, whatever the others are."""
    module = expert_module("qwen3_moe").float()
    known = quantlora.registry().quantizer(backend)
    stack = known.quantize_experts(module.gate_up_proj.detach(), "experts", **options)
    for expert, weight in enumerate(module.gate_up_proj.detach()):
        alone = known.dequantize(known.quantize(quantlora.linear_from(weight), **options))
        assert torch.equal(stack.dequantize([expert], torch.float32)[0], alone)
    several = stack.dequantize([2, 0], torch.float32)
    assert torch.equal(several[1], stack.dequantize([0], torch.float32)[0])


@pytest.mark.parametrize(("backend", "options"), FORMATS)
def test_the_state_is_plain_tensors_and_comes_back(backend: str, options: Any) -> None:
    model, other = (packed("gpt_oss", backend, **options) for _ in range(2))
    for buffer in other.buffers():
        buffer.zero_()
    state = model.state_dict()
    experts = model.experts.shapes["gate_up_proj"][0]
    assert all(type(one) is Tensor for one in state.values())
    assert all(len(one) == experts for key, one in state.items() if "packed" in key)
    other.load_state_dict(state)
    rows = rows_for(twin(model.experts).base_layer)
    assert torch.equal(model.experts(*rows), other.experts(*rows))


@pytest.mark.parametrize("family", LAYOUTS)
def test_a_merge_is_measured_and_undone_bit_for_bit(family: str) -> None:
    model = packed(family, bits=8)
    rows = rows_for(twin(model.experts).base_layer)
    before, base = model.experts(*rows), model.experts.base_layer
    report = quantlora.merge(model, mode="requantize")
    assert isinstance(model.experts.base_layer, PackedExperts)
    assert 0 < report.layers[0].loss < 0.1
    assert float((model.experts(*rows) - before).norm() / before.norm()) < 0.1
    quantlora.unmerge(model)
    assert model.experts.base_layer is base
    assert torch.equal(model.experts(*rows), before)


@pytest.mark.parametrize("family", LAYOUTS)
def test_merged_into_float_it_is_the_familys_own_class_again(family: str) -> None:
    plain = expert_module(family)
    model = packed(family)
    rows = rows_for(plain)
    before = model.experts(*rows)
    quantlora.merge_and_unload(model, mode="dequantize")
    assert type(model.experts) is type(plain)
    assert model.experts.state_dict().keys() == plain.state_dict().keys()
    assert {p.dtype for p in model.experts.parameters()} == {torch.float64}
    assert torch.allclose(model.experts(*rows), before, **CLOSE)


def test_without_an_adapter_the_packed_experts_compute_by_themselves() -> None:
    model = packed("gpt_oss")
    other = twin(model.experts).base_layer
    rows = rows_for(other)
    with quantlora.adapters_disabled(model):
        assert torch.allclose(model.experts(*rows), other(*rows), **CLOSE)
    quantlora.unload(model)
    found = model.experts(*rows)
    assert torch.allclose(found, other(*rows), **CLOSE)
    (of_x,) = torch.autograd.grad(found.square().sum(), rows[:1])
    (wanted,) = torch.autograd.grad(other(*rows).square().sum(), rows[:1])
    assert torch.allclose(of_x, wanted, **CLOSE)


def test_packed_experts_take_a_new_adapter() -> None:
    model = packed("qwen3_moe")
    quantlora.unload(model)
    model = adapted(model.experts)
    assert model.experts.quantizer.name == "normalfloat"
    check(model.experts)


def test_one_of_two_matrices_may_be_packed() -> None:
    names = ["experts.down_proj"]
    model = adapted(expert_module("gpt_oss"), backend="normalfloat", target_parameters=names)
    assert list(model.experts.base_layer.stacks) == ["down_proj"]
    check(model.experts)


def test_quantize_packs_experts_without_an_adapter() -> None:
    model = nn.ModuleDict({"experts": expert_module("mixtral")})
    quantlora.quantize(
        model, backend="normalfloat", target_modules=[], target_parameters=["experts.down_proj"]
    )
    assert list(model.experts.stacks) == ["down_proj"]


def test_moving_to_a_half_precision_leaves_the_codes_and_scales() -> None:
    model = packed("qwen3_moe")
    before = {k: v.clone() for k, v in model.experts.base_layer.state_dict().items()}
    model.experts.base_layer.bfloat16()
    after = model.experts.base_layer.state_dict()
    assert all(torch.equal(after[key], one) for key, one in before.items())
    assert model.experts.base_layer.gate_up_proj.dtype == torch.bfloat16


def test_what_cannot_be_packed_is_said() -> None:
    module = expert_module("mixtral")
    with pytest.raises(BackendError, match="packs layers only, no fused experts"):
        adapted(module, backend="bitsandbytes_8bit")
    module.down_proj.data[1, 0, 0] = torch.nan
    with pytest.raises(BackendError, match=r"experts.down_proj: the weight holds NaN"):
        adapted(module, backend="normalfloat")


@pytest.mark.parametrize("adapted_too", [True, False])
def test_an_export_writes_float_experts(adapted_too: bool, tmp_path: Any) -> None:
    """Also of experts that are packed and have no adapter."""
    model = mixtral()
    names = BOTH if adapted_too else None
    quantlora.quantize(model, backend="normalfloat", target_modules=[], target_parameters=BOTH)
    fields = {"target_modules": ["q_proj"], "target_parameters": names}
    model = quantlora.wrap(model, r=2, init_lora_weights=False, **fields).eval()
    ids = torch.arange(12)[None]
    with torch.no_grad():
        wanted = model(ids).logits
        quantlora.export_merged(model, tmp_path / "merged", progress=False)
        again = type(model).from_pretrained(tmp_path / "merged").eval()
        assert float((again(ids).logits - wanted).abs().max() / wanted.abs().max()) < 1e-5
    with pytest.raises(
        quantlora.MergeError, match=r"experts are packed|is in format 'normalfloat'"
    ):
        quantlora.export_merged(model, tmp_path / "packed", mode="requantize", progress=False)


def test_packed_experts_are_counted_as_packed() -> None:
    model = mixtral()
    numbers = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
    fields = {"target_modules": [], "target_parameters": BOTH, "r": 2}
    quantlora.wrap(model, backend="normalfloat", **fields)
    assert 0.5 * numbers < quantlora.memory_of(model).base_packed < 0.9 * numbers


@pytest.mark.parametrize("make", [mixtral, gpt_oss])
def test_save_pretrained_of_packed_experts_is_refused_by_name(make: Any, tmp_path: Any) -> None:
    model = quantlora.quantize(make(), backend="normalfloat", exclude_modules=["self_attn"])
    with pytest.raises(quantlora.AdapterFileError, match="would write packed experts"):
        model.save_pretrained(tmp_path)
    assert "model.layers.0.mlp.experts.down_proj.packed" in model.state_dict()
