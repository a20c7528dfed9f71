"""llm-compressor's files: packed in training, merged, saved, loaded again; or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from quantlora_compressed_tensors import packing
from torch import Tensor, nn

import quantlora
from quantlora import BackendError, registry
from quantlora.testing.models import tiny_llama
from tests.tools.versions import transformers_5

pytest.importorskip("compressed_tensors", "0.20")
pytestmark = [transformers_5, pytest.mark.filterwarnings("ignore:.*cannot run here")]

UP = "model.layers.0.mlp.up_proj"
FILES = ["W4A16", "W8A16", "W8A8", "FP8_DYNAMIC", "NVFP4A16", "MXFP4A16"]
SCHEMES = [*FILES, "W4A16_ASYM", "FP8_BLOCK"]
#: Bits of a weight of 128 x 64 in a float32 model, with all that belongs to it.
BITS = {"W4A16": 4.515625, "W8A8": 8.5, "NVFP4A16": 4.50390625, "MXFP4A16": 4.25}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``written(scheme)``: a folder that the library itself has compressed."""

    def write(scheme: str) -> Path:
        from compressed_tensors.compressors import ModelCompressor
        from compressed_tensors.quantization import (
            QuantizationConfig,
            apply_quantization_config,
        )
        from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme

        folder, model = tmp_path_factory.mktemp(scheme), tiny_llama(num_hidden_layers=1)
        found = preset_name_to_scheme(scheme, ["Linear"])
        if scheme in ("W4A16", "W4A16_ASYM", "W8A16"):
            found.weights.group_size = 64
        config = QuantizationConfig(config_groups={"group_0": found}, ignore=["lm_head"])
        apply_quantization_config(model, config)
        for path, module in model.named_modules():
            if isinstance(module, nn.Linear) and path != "lm_head":
                calibrate(module)
        compressor = ModelCompressor(quantization_config=config)
        compressor.compress_model(model)
        model.save_pretrained(folder)
        compressor.update_config(str(folder))
        return folder

    return write


def calibrate(module: Any) -> None:
    """Scales that span the weight, as llm-compressor's observers find them."""
    parts = packing._parts(module.weight.detach(), module.quantization_scheme)
    for name, value in parts.items():
        if hasattr(module, name):
            getattr(module, name).data = value.to(getattr(module, name).dtype)


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)


def tokens() -> Tensor:
    return torch.randint(3, 60, (2, 8), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("scheme", FILES)
def test_a_file_stays_packed_and_computes_as_the_library(written, scheme: str) -> None:
    folder = written(scheme)
    dense, model = load(folder), load(folder)
    with torch.no_grad():
        dense(input_ids=tokens())  # decompresses the whole model
    quantlora.wrap(model, r=2, target_modules="all-linear", exclude_modules=["lm_head"])
    model.train()(input_ids=tokens(), labels=tokens()).loss.backward()
    layer = model.get_submodule(UP)
    assert layer.quantizer.name == "compressed_tensors"
    assert layer.quantizer.matches(layer.base_layer)
    assert layer.lora_B["default"].weight.grad.any()
    weight = dense.get_submodule(UP).weight
    assert torch.equal(layer.dequantize().to(weight.dtype), weight)


@pytest.mark.filterwarnings("ignore:merging lost")
@pytest.mark.parametrize("scheme", ["W4A16", "NVFP4A16"])
def test_a_file_is_merged_saved_and_loaded_again(written, scheme: str, tmp_path) -> None:
    model = load(written(scheme))
    quantlora.wrap(model, r=2, target_modules="all-linear", exclude_modules=["lm_head"])
    torch.nn.init.normal_(model.get_submodule(UP).lora_B["default"].weight, std=0.05)
    quantlora.export_merged(model, tmp_path / "merged", mode="requantize")
    quantlora.merge_and_unload(model, mode="requantize")
    again, found = load(tmp_path / "merged"), registry().quantizer("compressed_tensors")
    for path, layer in model.named_modules():
        if found.matches(layer):
            assert torch.equal(found.dequantize(layer), found.dequantize(again.get_submodule(path)))


def test_unload_gives_the_model_back_to_the_library(written) -> None:
    model = load(written("W4A16"))
    with torch.no_grad():
        wanted = load(written("W4A16"))(input_ids=tokens()).logits
    quantlora.wrap(model, r=2, target_modules=["up_proj"])
    quantlora.unload(model)
    with torch.no_grad():
        assert torch.allclose(model(input_ids=tokens()).logits, wanted, atol=1e-2)
    assert not registry().quantizer("compressed_tensors").matches(model.get_submodule(UP))


def test_layers_without_an_adapter_are_decompressed(written) -> None:
    model, found = load(written("W4A16")), registry().quantizer("compressed_tensors")
    quantlora.wrap(model, r=2, target_modules=["up_proj"])
    quantlora.wrap(model, adapter_name="second", r=2, target_modules=["up_proj"])
    assert found.matches(model.get_submodule(UP).base_layer)
    assert not found.matches(model.get_submodule("model.layers.0.mlp.down_proj"))
    model(input_ids=tokens(), labels=tokens()).loss.backward()


def test_explain_leaves_the_model_packed(written) -> None:
    model, found = load(written("W4A16")), registry().quantizer("compressed_tensors")
    quantlora.explain(model, r=2, target_modules=["up_proj"])
    assert found.matches(model.get_submodule("model.layers.0.mlp.down_proj"))


def some(scheme: str = "W4A16_ASYM") -> Any:
    torch.manual_seed(0)
    found = registry().quantizer("compressed_tensors")
    return found.quantize(nn.Linear(64, 128, bias=False), scheme=scheme)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_merge_without_an_update_changes_no_value(scheme: str) -> None:
    found, layer = registry().quantizer("compressed_tensors"), some(scheme)
    linear = nn.Linear(64, 128, bias=False)
    linear.weight.data = found.dequantize(layer)
    again = found.quantize(linear, like=layer)
    assert torch.equal(found.dequantize(again), linear.weight)


@pytest.mark.parametrize("scheme", ["W4A16", "W4A16_ASYM", "W8A8"])
def test_qalora_merges_integers_exactly(scheme: str) -> None:
    model = nn.Sequential(some(scheme))
    affine = registry().quantizer("compressed_tensors").affine(model[0])
    assert torch.allclose(affine.dequantize(), registry().match("", model[0]).dequantize(model[0]))
    fields: dict[str, Any] = {"r": 2, "target_modules": ["0"], "init_lora_weights": False}
    if scheme == "W8A8":  # one group for all inputs would be a bias
        return
    quantlora.wrap(model, use_qalora=True, **fields)
    wanted = model[0].dequantize() + model[0].delta_weight("default", model[0].dequantize())
    quantlora.merge(model, mode="exact")
    found = model[0].quantizer.dequantize(model[0].base_layer)
    assert torch.allclose(found, wanted.detach(), atol=1e-6)


@pytest.mark.parametrize("scheme", BITS)
def test_a_weight_takes_its_bits_and_its_share_of_scales(scheme: str) -> None:
    layer = (
        registry()
        .quantizer("compressed_tensors")
        .quantize(nn.Linear(64, 128, bias=False), scheme=scheme)
    )
    assert sum(part.nbytes for part in layer.parameters()) * 8 / (64 * 128) == BITS[scheme]


#: What is broken, and what the error says of it.
BROKEN: dict[str, tuple[Callable[[Any], object], str]] = {
    "lost": (lambda y: delattr(y, "weight_scale"), "it has no weight_scale"),
    "packed": (lambda y: delattr(y, "weight_packed"), "it has no weight_packed"),
    "zeros": (lambda y: delattr(y, "weight_zero_point"), "zero-point"),
    "truncated": (lambda y: put(y, "weight_packed", y.weight_packed[:, :-1]), "Error: "),
    "short": (lambda y: put(y, "weight_packed", y.weight_packed[:-1]), "Error: |has shape"),
    "zero": (lambda y: y.weight_scale.data.zero_(), "weight_scale is all zero"),
    "infinite": (lambda y: y.weight_scale.data.fill_(float("nan")), "NaN or infinite"),
}


def put(layer: Any, name: str, value: Tensor) -> None:
    setattr(layer, name, nn.Parameter(value.clone(), requires_grad=False))


@pytest.mark.parametrize("name", BROKEN)
def test_a_damaged_layer_is_refused_by_its_path(name: str) -> None:
    layer, (damage, message) = some(), BROKEN[name]
    damage(layer)
    with pytest.raises(BackendError, match=f"(?s)0: this compressed-tensors layer .*{message}"):
        quantlora.wrap(nn.Sequential(layer), r=2, target_modules=["0"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "W99"}, "no scheme 'W99'; the library has FP8"),
        ({"scheme": "FP8"}, "needs scales of activations"),
        ({"bits": 4, "group_size": 48}, "groups of 48 do not divide 64 inputs"),
    ],
)
def test_what_cannot_be_packed_is_refused(options, message) -> None:
    with pytest.raises(BackendError, match=message):
        registry().quantizer("compressed_tensors").quantize(nn.Linear(64, 64), **options)
