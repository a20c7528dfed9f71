"""gpt-oss folders: blocks are kept, trained on, merged, written back, exported; or refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import quantlora
from quantlora.experts.stacks_format import whole_weights
from tests.tools.expert_modules import by_whole_weights
from tests.tools.hub_cache import put_in_cache
from tests.tools.versions import transformers_5

from .folders import rewrite, write_gpt_oss

pytestmark = transformers_5
pytest.importorskip("accelerate")

UP = "model.layers.0.mlp.experts.gate_up_proj"
IDS = torch.arange(5, 17).view(2, 6)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("gpt-oss")
    return folder, write_gpt_oss(folder)


@pytest.fixture
def model(written) -> Any:
    return quantlora.load(written[0], dtype=torch.float32, experts_implementation="eager")


def plain(folder: Path | str) -> Any:
    """As Transformers loads it without its kernel: dequantized."""
    from transformers import GptOssForCausalLM

    return GptOssForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def adapted(model: Any) -> Any:
    torch.manual_seed(1)
    return quantlora.wrap(model, r=2, init_lora_weights=False)


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def test_the_state_dict_is_the_file_byte_for_byte(model, written):
    same(model.state_dict(), written[1])


def test_it_computes_what_the_dequantized_model_does(model, written):
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, plain(written[0])(IDS).logits)


def test_transformers_loads_the_folder_as_before(model, written):
    assert plain(written[0]).model.layers[0].mlp.experts.gate_up_proj.dtype == torch.float32


@pytest.fixture
def hub_id(written, tmp_path, monkeypatch) -> str:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    put_in_cache(written[0], "someone/gpt-oss", tmp_path)
    return "someone/gpt-oss"


def test_a_hub_id_stays_in_its_blocks_too(written, hub_id):
    same(quantlora.load(hub_id, dtype=torch.float32).state_dict(), written[1])


def test_a_model_that_transformers_has_dequantized_is_told_so(hub_id):
    (said,) = quantlora.explain(plain(hub_id)).warnings
    assert said.startswith("the checkpoint is packed (mxfp4), and Transformers has dequantized it")
    assert "quantlora.load('someone/gpt-oss') keeps them packed" in said
    with pytest.warns(quantlora.AdapterWarning, match="all its weights are float now"):
        quantlora.wrap(plain(hub_id), r=2)


def test_a_model_in_its_blocks_is_not_told_so(model):
    assert not quantlora.explain(model).warnings


def test_dequantize_is_honoured_where_it_is_asked_for(written):
    from transformers import Mxfp4Config

    loaded = quantlora.load(written[0], quantization_config=Mxfp4Config(dequantize=True))
    assert loaded.model.layers[0].mlp.experts.gate_up_proj.is_floating_point()


def test_the_class_that_is_asked_for_is_loaded(written):
    from transformers import AutoModel, GptOssModel

    assert type(quantlora.load(written[0], model_class=AutoModel)) is GptOssModel


def test_what_is_saved_is_the_folder_again(model, written, tmp_path):
    model.save_pretrained(tmp_path)
    same(load_file(tmp_path / "model.safetensors"), written[1])
    same(quantlora.load(tmp_path, dtype=torch.float32).state_dict(), written[1])


def test_a_packed_folder_of_ours_holds_the_same_bytes(model, written, tmp_path):
    quantlora.save_packed(model, tmp_path / "packed")
    same(quantlora.load(tmp_path / "packed", dtype=torch.float32).state_dict(), written[1])


def test_gradients_of_experts_are_those_of_float64(model):
    layer: Any = adapted(model).model.layers[0].mlp.experts
    torch.manual_seed(2)
    index = torch.tensor([[0, 2], [3, 1], [2, 3]])
    rows = [torch.randn(3, 64, requires_grad=True), index, torch.rand(3, 2, requires_grad=True)]
    found = gradients(layer, rows, layer)
    layer.base_layer = layer.base_layer.unpacked(whole_weights(layer.base_layer))
    twin = layer.double()
    wide = [x.detach().double().requires_grad_() if x.requires_grad else x for x in rows]
    wanted = gradients(twin, wide, lambda *x: by_whole_weights(twin, ("default",), *x))
    for mine, exact in zip(found, wanted, strict=True):
        assert float((mine - exact).abs().max() / exact.abs().max()) < 1e-5


def gradients(layer: Any, rows: list[Tensor], run: Any) -> list[Tensor]:
    inputs = [x for x in (*rows, *layer.parameters()) if x.requires_grad]
    y = run(*rows)
    return [y, *torch.autograd.grad(y.square().sum(), inputs)]


def test_training_changes_adapters_and_no_block(model, written):
    quantlora.wrap(model.train(), r=2)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer, losses = torch.optim.AdamW(trained, lr=0.05), []
    for _ in range(4):
        optimizer.zero_grad()
        loss = model(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    same(quantlora.unload(model).state_dict(), written[1])


@pytest.mark.filterwarnings("ignore:merging lost")
def test_a_merged_model_is_a_folder_that_transformers_loads(model, tmp_path):
    x = adapted(model)
    merged = quantlora.merge_and_unload(x, mode="requantize")
    merged.save_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(plain(tmp_path)(IDS).logits, merged(IDS).logits)


@pytest.mark.filterwarnings("ignore:merging lost")
@pytest.mark.parametrize("mode", ["dequantize", "requantize"])
def test_an_export_is_the_merged_model(mode, model, tmp_path):
    x = adapted(model)
    quantlora.export_merged(x, tmp_path / "out", mode=mode, progress=False)
    names = load_file(tmp_path / "out" / "model.safetensors")
    assert (f"{UP}_blocks" in names) == (mode == "requantize")
    quantlora.merge(x, mode=mode)
    with torch.no_grad():
        wanted = x(IDS).logits
        torch.testing.assert_close(
            plain(tmp_path / "out")(IDS).logits, wanted, rtol=1e-4, atol=1e-4
        )


def test_layers_packed_beside_the_experts_are_said_not_to_load_again(model):
    fields = {"target_experts": False, "exclude_modules": ["lm_head"], "r": 2}
    quantlora.wrap(model, backend="normalfloat", **fields)
    with pytest.warns(UserWarning, match="experts are packed too, and config.json names one"):
        quantlora.unload(model)


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "NaN": ({f"{UP}_scales": torch.full((4, 64, 2), 255, dtype=torch.uint8)}, "a scale is NaN"),
    "cut": ({f"{UP}_blocks": torch.zeros(4, 64, 1, 16, dtype=torch.uint8)}, r"shapes \(4, 64, 1"),
    "float": ({f"{UP}_blocks": torch.zeros(4, 64, 2, 16)}, "float32 and torch.uint8, not bytes"),
    "other": (
        {
            f"{UP}_blocks": torch.zeros(4, 32, 2, 16, dtype=torch.uint8),
            f"{UP}_scales": torch.zeros(4, 32, 2, dtype=torch.uint8),
        },
        r"the checkpoint has \(4, 64, 32\), the model \(4, 64, 64\)",
    ),
    "missing": ({f"{UP}_scales": None}, "gate_up_proj_scales is not among"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_damaged_folder_is_refused_with_the_tensors_name(case, written, tmp_path):
    changes, reason = BROKEN[case]
    folder = shutil.copytree(written[0], tmp_path / "broken")
    rewrite(folder, changes)
    with pytest.raises(quantlora.ConfigError, match=reason):
        quantlora.load(folder)


def test_a_stack_that_is_missing_altogether_is_refused(written, tmp_path):
    folder = shutil.copytree(written[0], tmp_path / "broken")
    rewrite(folder, {f"{UP}_scales": None, f"{UP}_blocks": None})
    with pytest.raises(quantlora.ConfigError, match="gate_up_proj"):
        quantlora.load(folder)
