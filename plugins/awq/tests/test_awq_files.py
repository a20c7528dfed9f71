"""AutoAWQ's files: read bit for bit, trained on, merged, saved, loaded again; or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import quantlora
from quantlora import BackendError, registry
from tests.tools.versions import transformers_5

from .awq_checkpoint import write_checkpoint

pytest.importorskip("gptqmodel", "7.0")
pytestmark = transformers_5

UP = "model.layers.0.mlp.up_proj"
#: The kernel that Transformers takes by itself on a CPU repacks; the other never does.
KERNELS = ["auto", "torch_awq"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("awq")
    return folder, write_checkpoint(folder)


def load(folder: Path, kernel: str = "auto", dtype: torch.dtype = torch.float16) -> Any:
    from transformers import AutoModelForCausalLM, AwqConfig

    config = AwqConfig(bits=4, group_size=32, backend=kernel)
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, device_map="cpu", quantization_config=config
    )


def tokens() -> Tensor:
    return torch.randint(3, 60, (2, 8), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_weight_is_what_the_file_holds(written, kernel: str) -> None:
    folder, dense = written
    model = load(folder, kernel)
    for path, weight in dense.items():
        layer = model.get_submodule(path)
        found = registry().match(path, layer)
        assert found.name == "awq"
        assert torch.equal(found.dequantize(layer), weight)
        assert torch.equal(found.dequantize_to(layer, torch.float16), weight.half())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_packed_weight_is_what_the_library_multiplies_with(bits: int) -> None:
    found = registry().quantizer("awq")
    layer: Any = found.quantize(nn.Linear(64, 40, bias=False), bits=bits, group_size=16)
    product = layer(torch.eye(64, dtype=torch.float16))
    assert torch.equal(product.t(), found.dequantize_to(layer, torch.float16))


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_file_is_trained_merged_saved_and_loaded_again(written, kernel: str, tmp_path) -> None:
    model = load(written[0], kernel)
    quantlora.wrap(model, r=2, target_modules="all-linear", exclude_modules=["lm_head"])
    model.train()(input_ids=tokens(), labels=tokens()).loss.backward()
    assert model.get_submodule(UP).lora_B["default"].weight.grad.abs().sum() > 0
    torch.nn.init.normal_(model.get_submodule(UP).lora_B["default"].weight, std=0.05)
    quantlora.export_merged(model, tmp_path / "merged", mode="requantize")
    quantlora.merge_and_unload(model, mode="requantize")
    again, found = load(tmp_path / "merged", kernel), registry().quantizer("awq")
    for path in written[1]:
        pair = (found.dequantize(one.get_submodule(path)) for one in (model, again))
        assert torch.equal(*pair)


def test_a_merge_without_an_update_changes_no_bit(written) -> None:
    model = load(written[0])
    quantlora.wrap(model, r=2, target_modules=["up_proj"])
    quantlora.merge_and_unload(model, mode="requantize")
    found = registry().quantizer("awq")
    assert torch.equal(found.dequantize(model.get_submodule(UP)), written[1][UP])


def test_qalora_merges_exactly_at_the_same_bits(written) -> None:
    model = load(written[0], dtype=torch.float32)
    fields = {"r": 2, "target_modules": ["up_proj"], "init_lora_weights": False}
    quantlora.wrap(model, use_qalora=True, **fields)
    layer = model.get_submodule(UP)
    wanted = layer.dequantize() + layer.delta_weight("default", layer.dequantize())
    quantlora.merge(model, mode="exact")
    assert layer.quantizer.describe(layer.base_layer)["bits"] == 4
    found = layer.quantizer.dequantize(layer.base_layer)
    assert torch.allclose(found, wanted.detach(), atol=1e-6)


def test_a_weight_takes_half_a_byte_and_its_share_of_scales(written) -> None:
    layer = load(written[0]).get_submodule(UP)
    stored = sum(buffer.nbytes for buffer in layer.buffers())
    assert stored == layer.in_features * layer.out_features * (4 + 16 / 32 + 4 / 32) / 8


def test_a_model_packed_here_is_loaded_by_transformers(tmp_path) -> None:
    from quantlora.testing.models import tiny_llama

    model = tiny_llama(num_hidden_layers=1)
    quantlora.quantize(model, backend="awq", exclude_modules=["lm_head"])
    model.save_pretrained(tmp_path)
    again, found = load(tmp_path), registry().quantizer("awq")
    for part in (model, again):
        assert found.matches(part.get_submodule(UP))
    layers = (part.get_submodule(UP) for part in (model, again))
    assert torch.equal(*(found.dequantize(layer) for layer in layers))


#: What is broken, and what the error says of it.
BROKEN: dict[str, tuple[Callable[[Any], None], str]] = {
    "truncated": (lambda y: setattr(y, "qweight", y.qweight[:-1]), r"qweight has shape \(63, 16\)"),
    "zeros": (lambda y: setattr(y, "qzeros", y.qzeros[:, 1:]), "qzeros has shape"),
    "words": (lambda y: setattr(y, "qweight", y.qweight.short()), "qweight is torch.int16"),
    "lost": (lambda y: y.scales.zero_(), "all its scales are zero"),
    "infinite": (lambda y: y.scales.fill_(float("inf")), "NaN or infinite"),
    "none": (lambda y: setattr(y, "scales", None), "it has no scales"),
    "bits": (lambda y: setattr(y, "bits", 5), "it has 5 bits"),
    "used": (lambda y: setattr(y, "linear_mode", "inference"), "before its first forward"),
    "eora": (lambda y: vars(y).update(adapter=object()), "EoRA"),
    "gemv": (lambda y: vars(y).update(SUPPORTS_FORMATS={"gemv": 1}), "an order of its own"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_damaged_layer_is_refused_by_its_path(written, name: str) -> None:
    model, (damage, message) = load(written[0]), BROKEN[name]
    damage(model.get_submodule(UP))
    with pytest.raises(BackendError, match=f"{UP}.*{message}"):
        quantlora.wrap(model, r=2)


def test_a_layer_that_has_repacked_itself_is_refused(written) -> None:
    model = load(written[0]).eval()
    with torch.no_grad():
        model(input_ids=tokens())
    assert model.get_submodule(UP).linear_mode == "inference"
    with pytest.raises(BackendError, match="before its first forward"):
        quantlora.wrap(model, r=2)


@pytest.mark.parametrize(
    ("linear", "options", "message"),
    [
        (nn.Linear(64, 33), {}, "a weight of 33 x 64"),
        (nn.Linear(64, 32), {"group_size": 48}, r"group_size=48: these inputs can have \[64, 32"),
    ],
)
def test_what_cannot_be_packed_is_refused(linear, options, message) -> None:
    with pytest.raises(BackendError, match=message):
        registry().quantizer("awq").quantize(linear, **options)
