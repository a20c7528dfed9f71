"""Against PEFT on the same quantized model: equal where PEFT is right, right where it is not.

PEFT runs upstream's forward; in training mode, without dropout, that is the dequantized product.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import quantlora
from quantlora import LoraLinear, Quantizer

peft = pytest.importorskip("peft")

FORMS: dict[str, dict[str, Any]] = {
    "4 bits": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "4 bits nested": {"load_in_4bit": True, "bnb_4bit_use_double_quant": True},
    "8 bits": {"load_in_8bit": True},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {"lora_alpha": 6},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "bias": {"lora_bias": True},
}
#: As large as an update gets in training; B starts at zero.
SIZE = 0.05

Load = Callable[[], Any]


@pytest.fixture(params=FORMS)
def load(request: pytest.FixtureRequest, folder: Path) -> Load:
    settings = FORMS[request.param]
    return lambda: AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=BitsAndBytesConfig(**settings), dtype=torch.float32
    )


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(3, 80, (2, 12), generator=torch.Generator().manual_seed(0))


def peft_model(base: Any, **fields: Any) -> Any:
    """PEFT's, with random adapters."""
    config = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **fields)
    model = peft.get_peft_model(base, config)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=SIZE)
    return model


def pair(load: Load, folder: Path, **fields: Any) -> tuple[Any, Any]:
    """PEFT's model and ours, with the same adapter, by way of PEFT's file."""
    theirs, ours = peft_model(load(), **fields).train(), load()
    theirs.save_pretrained(folder)
    quantlora.load_adapter(ours, folder, is_trainable=True)
    return theirs, ours.train()


def distance(actual: Tensor, wanted: Tensor) -> float:
    actual, wanted = actual.detach().double(), wanted.detach().double()
    return float((actual - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_agree(load: Load, ids: Tensor, tmp_path: Path, variant: str) -> None:
    theirs, ours = pair(load, tmp_path, **VARIANTS[variant])
    assert distance(ours(ids).logits, theirs(ids).logits) < 1e-5


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_agree(load: Load, ids: Tensor, tmp_path: Path, variant: str) -> None:
    theirs, ours = pair(load, tmp_path, **VARIANTS[variant])
    for model in (theirs, ours):
        model(ids, labels=ids).loss.backward()
    found = dict(ours.named_parameters())
    wanted = {n.removeprefix("base_model.model."): p for n, p in theirs.named_parameters()}
    trained = [name for name, parameter in wanted.items() if parameter.requires_grad]
    assert trained == [name for name, parameter in found.items() if parameter.requires_grad]
    for name in trained:
        assert distance(found[name].grad, wanted[name].grad) < 1e-5, name


def test_peft_loads_what_we_save(load: Load, ids: Tensor, tmp_path: Path) -> None:
    ours = quantlora.wrap(load(), r=4, init_lora_weights=False).train()
    quantlora.save_adapter(ours, tmp_path)
    theirs = peft.PeftModel.from_pretrained(load(), tmp_path).train()
    assert distance(ours(ids).logits, theirs(ids).logits) < 1e-5


def test_after_generation_gradients_are_still_pefts_from_before(
    load: Load, ids: Tensor, tmp_path: Path
) -> None:
    """On CPUs with AVX512-BF16, PEFT's own are wrong after one eval forward of a 4-bit model."""
    theirs, ours = pair(load, tmp_path)
    ours.eval().generate(ids[:, :3], attention_mask=torch.ones(2, 3), max_new_tokens=3)
    for model in (theirs, ours.train()):
        model(ids, labels=ids).loss.backward()
    wanted = theirs.base_model.model.model.layers[0].self_attn.q_proj.lora_B["default"].weight
    found = ours.model.layers[0].self_attn.q_proj.lora_B["default"].weight
    assert distance(found.grad, wanted.grad) < 1e-5


def test_a_model_without_transformers_flag_is_wrapped_in_its_format(load: Load) -> None:
    """PEFT uses a plain wrapper then, and its merge crashes."""
    model = load()
    for flag in ("is_loaded_in_4bit", "is_loaded_in_8bit"):
        setattr(model, flag, False)
    layer = quantlora.wrap(model, r=4).model.layers[0].self_attn.q_proj
    assert layer.quantizer.name.startswith("bitsandbytes_")
    quantlora.merge(model)
    assert layer.quantizer.matches(layer.base_layer)


def test_a_merged_bias_is_scaled(load: Load, ids: Tensor, tmp_path: Path) -> None:
    """PEFT leaves ``scaling`` out of the merged bias of a bitsandbytes layer."""
    _, ours = pair(load, tmp_path, lora_bias=True, lora_alpha=16)
    layer = first_layer(ours)
    nn.init.normal_(layer.lora_B["default"].bias)
    x = torch.randn(5, 64)
    wanted = layer(x)
    quantlora.merge(ours, mode="dequantize")
    assert distance(layer(x), wanted) < 1e-5


def first_layer(model: Any) -> LoraLinear:
    layer = model.model.layers[0].self_attn.q_proj
    assert isinstance(layer, LoraLinear)
    return layer


def test_two_adapters_are_packed_once(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT requantizes for each; the error of the first is then packed into the second."""
    model = load()
    for name in ("one", "two"):
        quantlora.wrap(model, r=4, adapter_name=name, init_lora_weights=False)
    quantlora.set_adapter(model, ["one", "two"])
    layer = first_layer(model)
    wanted = layer.merged_parameters(("one", "two"), layer.dequantize(), None)[0]
    linear, like = quantlora.linear_from(wanted), layer.base_layer
    quantlora.merge(model, ["one", "two"])
    packed = layer.quantizer.quantize(linear, like=like)
    assert torch.equal(layer.dequantize(), layer.quantizer.dequantize(packed))


def test_unmerge_gives_back_the_packed_weight(load: Load) -> None:
    """After PEFT's, about 41 % of an NF4 weight are as they were."""
    model = quantlora.wrap(load(), r=4, init_lora_weights=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    quantlora.merge(model)
    quantlora.unmerge(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_active_adapter_is_not_dropped_in_silence(load: Load) -> None:
    """PEFT drops those that are active but were not merged."""
    model = load()
    for name in ("one", "two"):
        quantlora.wrap(model, r=4, adapter_name=name, init_lora_weights=False)
    quantlora.set_adapter(model, ["one", "two"])
    with pytest.raises(quantlora.MergeError, match="two"):
        quantlora.merge_and_unload(model, ["one"])


def test_pefts_dora_takes_its_norms_of_noise_once_a_weight_is_repacked(
    four_bit: Quantizer, repack: Callable[[nn.Module], None]
) -> None:
    """Why docs/benchmarks.md has no time of PEFT's DoRA on processors with AVX512-BF16."""
    from peft.utils.integrations import dequantize_module_weight

    torch.manual_seed(0)
    layer = four_bit.quantize(nn.Linear(128, 64, bias=False), compress_statistics=False)
    wanted = four_bit.dequantize(layer)
    assert distance(dequantize_module_weight(layer), wanted) < 1e-2
    repack(nn.Sequential(layer))
    found = dequantize_module_weight(layer).float()
    assert distance(found, wanted) > 0.5
    assert distance(found.norm(dim=1), wanted.norm(dim=1)) > 0.02
