"""FP8 folders and layers: what they hold, trained on, merged, saved, loaded again; or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import quantlora
from quantlora import BackendError, registry
from quantlora.testing.models import tiny_llama
from tests.tools.hub_cache import put_in_cache
from tests.tools.versions import transformers_5

pytestmark = transformers_5

UP = "model.layers.0.mlp.up_proj"
BLOCK = 32
E4M3 = torch.float8_e4m3fn


def quantized(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales by block and the weight they stand for; sizes are multiples of the block."""
    tiles = weight.unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK))
    scales = tiles.abs().amax((1, 3)) / 448
    codes = (tiles / scales[:, None, :, None]).to(E4M3)
    dense = codes.float() * scales[:, None, :, None]
    flat = (part.flatten(2).flatten(0, 1) for part in (codes.view(torch.uint8), dense))
    octets, wide = flat
    return octets.view(E4M3), scales, wide


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A folder as DeepSeek's and Qwen's are, written tensor by tensor, and its weights."""
    folder, model = tmp_path_factory.mktemp("fp8"), tiny_llama(num_hidden_layers=1)
    tensors, dense = dict(model.state_dict()), {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and path != "lm_head":
            codes, scales, dense[path] = quantized(tensors.pop(f"{path}.weight"))
            tensors |= {f"{path}.weight": codes, f"{path}.weight_scale_inv": scales}
    model.config.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["LlamaForCausalLM"]
    config["quantization_config"] = {
        "quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK],
        "modules_to_not_convert": ["lm_head"],
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder, dense


def tokens() -> Tensor:
    return torch.randint(3, 60, (2, 8), generator=torch.Generator().manual_seed(0))


def test_a_folder_is_loaded_as_it_is(written) -> None:
    folder, dense = written
    model: Any = quantlora.load(folder, dtype=torch.float32)
    for path, weight in dense.items():
        layer: Any = model.get_submodule(path)
        assert layer.weight.dtype == E4M3
        assert torch.equal(registry().match(path, layer).dequantize(layer), weight)


@pytest.fixture
def hub_id(written, tmp_path, monkeypatch) -> str:
    """A cache of the hub that holds the folder as a download would leave it; no network."""
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    put_in_cache(written[0], "someone/fp8-model", tmp_path)
    return "someone/fp8-model"


def test_a_hub_id_is_loaded_as_it_is(written, hub_id) -> None:
    model: Any = quantlora.load(hub_id, dtype=torch.float32)
    for path, weight in written[1].items():
        assert model.get_submodule(path).weight.dtype == E4M3
        assert torch.equal(
            registry().quantizer("fp8").dequantize(model.get_submodule(path)), weight
        )


def test_a_revision_of_a_hub_id_that_is_not_there_is_an_error(hub_id) -> None:
    with pytest.raises(quantlora.ConfigError, match=f"{hub_id}: .* cannot be fetched"):
        quantlora.load(hub_id, revision="1" * 40)


def test_the_class_that_is_asked_for_is_loaded(written) -> None:
    from transformers import AutoModel, LlamaModel

    model: Any = quantlora.load(written[0], model_class=AutoModel)
    assert type(model) is LlamaModel
    assert model.layers[0].mlp.up_proj.weight.dtype == E4M3


def test_a_layer_that_cannot_run_here_is_told_with_what_to_do(written) -> None:
    model: Any = quantlora.load(written[0], dtype=torch.float32)
    quantlora.wrap(model, r=2, target_modules="all-linear", exclude_modules=["lm_head"])
    with pytest.warns(
        UserWarning, match=r"and 6 more: .* cannot run here.*mode=.dequantize."
    ) as said:
        quantlora.unload(model)
    assert len(said) == 1
    quantlora.wrap(model, r=2, target_modules="all-linear", exclude_modules=["lm_head"])
    quantlora.merge_and_unload(model, mode="dequantize")
    assert model(input_ids=tokens()).logits.isfinite().all()


def test_a_model_that_transformers_has_dequantized_is_told_so(written) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(written[0])
    (said,) = quantlora.explain(model).warnings
    assert said.startswith("the checkpoint is packed (fp8), and Transformers has dequantized it")
    with pytest.warns(quantlora.AdapterWarning, match=r"quantlora.load\('.*'\) keeps them packed"):
        quantlora.wrap(model, r=2)
    assert not quantlora.explain(quantlora.load(written[0]), r=2).warnings


def test_dequantize_is_honoured_where_it_is_asked_for(written) -> None:
    from transformers import FineGrainedFP8Config

    config = FineGrainedFP8Config(dequantize=True)
    model: Any = quantlora.load(written[0], quantization_config=config)
    assert model.model.layers[0].mlp.up_proj.weight.dtype.itemsize > 1


def test_others_load_the_folder_as_before(written) -> None:
    from transformers import AutoModelForCausalLM

    quantlora.load(written[0])
    model = AutoModelForCausalLM.from_pretrained(written[0], dtype=torch.float32)
    expected = E4M3 if torch.cuda.is_available() else torch.float32
    assert model.get_submodule(UP).weight.dtype == expected


@pytest.mark.filterwarnings("ignore:merging lost")
def test_a_folder_is_trained_merged_saved_and_loaded_again(written, tmp_path) -> None:
    model: Any = quantlora.load(written[0], dtype=torch.float32)
    quantlora.wrap(model, r=2, target_modules="all-linear", exclude_modules=["lm_head"])
    model.train()(input_ids=tokens(), labels=tokens()).loss.backward()
    B = model.get_submodule(UP).lora_B["default"].weight
    assert B.grad.abs().sum() > 0
    torch.nn.init.normal_(B, std=0.05)
    with pytest.warns(UserWarning, match="compute capability"):
        quantlora.merge_and_unload(model, mode="requantize")
    model.save_pretrained(tmp_path)
    again, found = quantlora.load(tmp_path, dtype=torch.float32), registry().quantizer("fp8")
    for path in written[1]:
        pair = (found.dequantize(part.get_submodule(path)) for part in (model, again))
        assert torch.equal(*pair)


def test_a_merge_without_an_update_changes_no_bit() -> None:
    found, layer = registry().quantizer("fp8"), plain(nn.Linear(64, 64, bias=False))
    linear = nn.Linear(64, 64, bias=False)
    linear.weight.data = found.dequantize(layer)
    again = found.quantize(linear, like=layer)
    assert torch.equal(again.weight.view(torch.uint8), layer.weight.view(torch.uint8))
    assert torch.equal(again.weight_scale, layer.weight_scale)


def plain(linear: nn.Linear, scale: Tensor | None = None) -> Any:
    """A layer of torch's own with 8-bit floats and ``weight_scale``."""
    weight = linear.weight.detach()
    scale = weight.abs().amax(1, keepdim=True) / 448 if scale is None else scale
    linear.weight = nn.Parameter((weight / scale).to(E4M3), requires_grad=False)
    linear.register_buffer("weight_scale", scale)
    return linear


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (48,), (48, 1)])
def test_plain_layers_have_a_scale_for_the_tensor_or_each_row(shape) -> None:
    scale = torch.rand(48)[: torch.Size(shape).numel()].view(shape) + 0.01
    column = scale.reshape(-1, 1)
    layer = plain(nn.Linear(32, 48), column)
    layer.weight_scale = scale
    wanted = layer.weight.float() * column
    assert torch.equal(registry().match("", layer).dequantize(layer), wanted)
    model = quantlora.wrap(nn.Sequential(layer), r=2, target_modules=["0"])
    model(torch.randn(3, 32)).sum().backward()


@pytest.mark.parametrize("block", [(16, 16), (32, 32), (128, 128)])
def test_blocks_at_the_edges_are_smaller(block) -> None:
    found, linear = registry().quantizer("fp8"), nn.Linear(50, 33)
    layer = found.quantize(linear, weight_block_size=block)
    rows, columns = (torch.arange(size) // step for size, step in zip((33, 50), block, strict=True))
    scales = layer.weight_scale_inv[rows][:, columns]
    assert torch.equal(found.dequantize(layer), layer.weight.float() * scales)


def test_layers_smaller_than_a_block_are_saved_beside_larger_ones(tmp_path) -> None:
    model: Any = tiny_llama(num_hidden_layers=1, intermediate_size=160)
    quantlora.quantize(model, backend="fp8", exclude_modules=["lm_head"])
    model.save_pretrained(tmp_path)
    again, found = quantlora.load(tmp_path, dtype=torch.float32), registry().quantizer("fp8")
    for path in (UP, "model.layers.0.self_attn.k_proj"):
        layers = (part.get_submodule(path) for part in (model, again))
        assert torch.equal(*(found.dequantize(layer) for layer in layers))


def test_scales_that_are_powers_of_two_stay_so() -> None:
    from transformers.integrations.finegrained_fp8 import FP8Linear

    like = FP8Linear(64, 64, (32, 32), scale_fmt="ue8m0")
    like.weight.data, like.weight_scale_inv.data = (
        torch.zeros(64, 64).to(E4M3),
        torch.ones(2, 2).to(torch.float8_e8m0fnu),
    )
    found, linear = registry().quantizer("fp8"), nn.Linear(64, 64)
    layer = found.quantize(linear, like=like)
    assert layer.weight_scale_inv.dtype == torch.float8_e8m0fnu
    error = (found.dequantize(layer) - linear.weight).norm() / linear.weight.norm()
    assert error < 0.05


def test_a_weight_takes_a_byte_and_its_share_of_scales(written) -> None:
    layer: Any = quantlora.load(written[0]).get_submodule(UP)
    held = sum(tensor.nbytes for tensor in layer.parameters())
    assert held == 64 * 128 + 4 * (64 // BLOCK) * (128 // BLOCK)


#: What is broken, and what the error says of it.
BROKEN: dict[str, tuple[Callable[[Any], None], str]] = {
    "blocks": (lambda y: setattr(y, "weight_scale", torch.ones(3, 7)), r"scale has shape \(3, 7\)"),
    "zero": (lambda y: y.weight_scale.zero_(), "all zero or not finite"),
    "infinite": (lambda y: y.weight_scale.fill_(float("inf")), "all zero or not finite"),
    "nan": (lambda y: y.weight.data.view(torch.uint8).fill_(0x7F), "weight holds NaN"),
    "truncated": (
        lambda y: setattr(y, "weight", nn.Parameter(y.weight[:16].clone(), False)),
        r"weight has shape \(16, 64\)",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_damaged_layer_is_refused_by_its_path(name: str) -> None:
    layer, (damage, message) = plain(nn.Linear(64, 64)), BROKEN[name]
    damage(layer)
    with pytest.raises(BackendError, match=f"0: this FP8 layer cannot be read: .*{message}"):
        quantlora.wrap(nn.Sequential(layer), r=2, target_modules=["0"])


def test_codes_that_were_cast_without_their_scale_are_no_weight() -> None:
    found = registry().quantizer("fp8")
    layer = found.quantize(nn.Linear(64, 64), weight_block_size=(32, 32)).to(torch.bfloat16)
    with pytest.raises(quantlora.QuantloraError, match=r"0.*fp8"):
        quantlora.wrap(nn.Sequential(layer), r=2, target_modules=["0"])


def test_a_truncated_file_is_an_error(written, tmp_path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((written[0] / name).read_bytes())
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(quantlora.ConfigError, match=r"(?i)safetensor|incomplete|header|size"):
        quantlora.load(tmp_path)
