"""Files whose names are of another time, or of a model that was wrapped once more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import quantlora
from quantlora.errors import AdapterError, AdapterFileError, AdapterWarning
from quantlora.testing.models import tiny_llama

IDS = torch.tensor([[1, 5, 11, 7, 13, 2]])
PREFIX = "base_model.model."


def saved(model: nn.Module, folder: Path, **fields: Any) -> torch.Tensor:
    """Save an adapter that counts; the logits with it."""
    torch.manual_seed(1)
    quantlora.wrap(model, r=2, init_lora_weights=False, **fields).eval()
    quantlora.save_adapter(model, folder)
    return model(input_ids=IDS).logits


def rename(folder: Path, new: Any, **settings: Any) -> None:
    file, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    save_file({new(key): one for key, one in load_file(file).items()}, file, {"format": "pt"})
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))


@pytest.mark.parametrize(
    "new",
    [
        lambda key: key.replace("layers.0.", "layers.0._orig_mod."),
        lambda key: key.replace(".self_attn.", "._fsdp_wrapped_module.self_attn."),
        lambda key: key.replace(".mlp.", "._checkpoint_wrapped_module.mlp."),
        lambda key: key.replace(PREFIX, PREFIX + "module."),
        lambda key: key.replace(PREFIX, "module." + PREFIX),
        lambda key: PREFIX + key,
        lambda key: key.replace(PREFIX, "module._orig_mod." + PREFIX + PREFIX),
        lambda key: key.removeprefix(PREFIX),
    ],
)
def test_prefixes_of_wrappers_do_not_count(new, tmp_path):
    want = saved(tiny_llama(), tmp_path)
    rename(tmp_path, new)
    model = quantlora.load_adapter(tiny_llama(), tmp_path)
    assert torch.equal(model(input_ids=IDS).logits, want)


def checkpointed(model: Any) -> nn.Module:
    for i, layer in enumerate(model.model.layers):
        model.model.layers[i] = checkpoint_wrapper(layer)
    return model


@pytest.mark.parametrize(
    "around", [lambda m: torch.compile(m, backend="eager"), nn.DataParallel, checkpointed]
)
@pytest.mark.parametrize("targets", ["all-linear", ["model.layers.0.self_attn.q_proj"]])
def test_an_adapter_is_loaded_onto_a_model_that_is_wrapped_once_more(around, targets, tmp_path):
    want = saved(tiny_llama(), tmp_path, target_modules=targets)
    model = around(tiny_llama())
    assert quantlora.load_adapter(model, tmp_path) is model
    assert torch.equal(model(input_ids=IDS).logits, want)


def test_a_compiled_model_computes_with_what_was_loaded_after_its_first_call(tmp_path, monkeypatch):
    want = saved(tiny_llama(), tmp_path)
    model = torch.compile(tiny_llama().eval(), backend="eager")
    assert not torch.allclose(model(input_ids=IDS).logits, want)
    quantlora.load_adapter(model, tmp_path)
    assert torch.allclose(model(input_ids=IDS).logits, want, atol=1e-6)


def test_an_adapter_to_train_comes_before_data_parallelism(tmp_path):
    with pytest.raises(AdapterError, match="put the adapter on the model first"):
        quantlora.wrap(distributed(tiny_llama()), r=2)


def distributed(model: nn.Module) -> nn.Module:
    """DistributedDataParallel as its class tells it; a process group is not needed for that."""
    outer = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(outer)
    outer.module = model
    return outer


TEXT = {
    "vocab_size": 120, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip


def qwen2_vl() -> nn.Module:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    field = "rope_parameters" if transformers.__version__ >= "5" else "rope_scaling"
    config = transformers.Qwen2VLConfig(
        text_config={**TEXT, field: rope},
        vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2},
        image_token_id=100,
        video_token_id=101,
    )
    return transformers.Qwen2VLForConditionalGeneration(config)


def llava() -> nn.Module:
    config = transformers.LlavaConfig(
        text_config={**TEXT, "model_type": "llama"},
        vision_config={**VISION, "model_type": "clip_vision_model"},
        image_token_id=100,
    )
    return transformers.LlavaForConditionalGeneration(config)


def gemma3() -> nn.Module:
    config = transformers.Gemma3Config(
        text_config={**TEXT, "head_dim": 8},
        vision_config=VISION,
        mm_tokens_per_image=4,
        image_token_id=100,
    )
    return transformers.Gemma3ForConditionalGeneration(config)


def _qwen(key: str) -> str:
    return key.replace("model.language_model.", "model.").replace("model.visual", "visual")


def _llava(key: str) -> str:
    key = key.replace("model.language_model.", "language_model.model.")
    return key.replace(PREFIX + "lm_head", PREFIX + "language_model.lm_head")


OLD = {"qwen2_vl": (qwen2_vl, _qwen), "llava": (llava, _llava), "gemma3": (gemma3, _llava)}
LAYERS = r".*language_model.*\.(q_proj|v_proj)"


def made(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return OLD[kind][0]().eval()


@pytest.mark.parametrize(
    "targets",
    [
        ["q_proj", "v_proj"],
        r"(model|language_model\.model)\.layers\.\d+\.self_attn\.(q_proj|v_proj)",
        LAYERS,
    ],
)
@pytest.mark.parametrize("kind", OLD)
def test_a_file_from_before_a_renaming_loads(kind, targets, tmp_path):
    want = saved(made(kind), tmp_path, target_modules=LAYERS)
    rename(tmp_path, OLD[kind][1], target_modules=targets, exclude_modules=".*vis(ual|ion).*")
    model = quantlora.load_adapter(made(kind), tmp_path)
    assert torch.equal(model(input_ids=IDS).logits, want)


def test_ranks_of_old_names_are_kept(tmp_path):
    old = "model.layers.1.self_attn.v_proj"
    ranks = {"rank_pattern": {old.replace("model", "model.language_model", 1): 4}}
    want = saved(made("qwen2_vl"), tmp_path, target_modules=LAYERS, **ranks)
    rename(tmp_path, _qwen, target_modules=["q_proj", "v_proj"], rank_pattern={old: 4})
    model = quantlora.load_adapter(made("qwen2_vl"), tmp_path)
    assert torch.equal(model(input_ids=IDS).logits, want)
    quantlora.save_adapter(model, tmp_path / "again")
    again = quantlora.load_adapter(made("qwen2_vl"), tmp_path / "again")
    assert torch.equal(again(input_ids=IDS).logits, want)


def test_a_hot_swap_reads_old_names_too(tmp_path):
    want = saved(made("llava"), tmp_path, target_modules=LAYERS)
    rename(tmp_path, _llava, target_modules=["q_proj", "v_proj"])
    model = quantlora.wrap(made("llava"), r=2, target_modules=LAYERS).eval()
    quantlora.hot_swap(model, tmp_path)
    assert torch.equal(model(input_ids=IDS).logits, want)


def test_a_key_mapping_renames(tmp_path):
    want = saved(tiny_llama(), tmp_path)
    rename(tmp_path, lambda key: key.replace("self_attn", "attention"))
    with pytest.raises(AdapterFileError, match="does not fit this model"):
        quantlora.load_adapter(tiny_llama(), tmp_path)
    for load in (
        quantlora.load_adapter,
        lambda m, f, **k: quantlora.wrap(m).load_adapter(f, "b", **k),
    ):
        model = tiny_llama()
        load(model, tmp_path, key_mapping={r"\.attention\.": ".self_attn."})
        if "b" in quantlora.active_adapters(model):
            quantlora.set_adapter(model, "b")
        assert torch.equal(model.eval()(input_ids=IDS).logits, want)


def trained(model: nn.Module) -> torch.Tensor:
    """Move everything that is trained; the logits then."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in filter(lambda p: p.requires_grad, model.parameters()):
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()(input_ids=IDS).logits


def old_value(new: Any, value: Any) -> Any:
    """The setting with the old names of the modules in it."""
    if isinstance(value, dict):
        return {new(PREFIX + path).removeprefix(PREFIX): ids for path, ids in value.items()}
    return [
        new(PREFIX + path).removeprefix(PREFIX) if isinstance(path, str) else path for path in value
    ]


def test_all_expressions_of_a_key_mapping_are_applied(tmp_path):
    want = saved(tiny_llama(), tmp_path)
    rename(tmp_path, lambda key: key.replace("self_attn", "attention").replace("layers", "blocks"))
    mapping = {r"\.attention\.": ".self_attn.", r"blocks\.": "layers."}
    model = quantlora.load_adapter(tiny_llama(), tmp_path, key_mapping=mapping)
    assert torch.equal(model(input_ids=IDS).logits, want)


def test_a_key_mapping_counts_for_names_that_the_model_has(tmp_path):
    saved(tiny_llama(), tmp_path, target_modules=["layers.0.self_attn.q_proj"])
    mapping = {r"layers\.0": "layers.1"}
    model = quantlora.load_adapter(tiny_llama(), tmp_path, key_mapping=mapping)
    assert [path for path, _ in quantlora.lora_layers(model)] == ["model.layers.1.self_attn.q_proj"]


def test_an_expression_that_matches_no_key_is_named(tmp_path):
    saved(tiny_llama(), tmp_path)
    with pytest.warns(AdapterWarning, match="'blocks'.*matched no key"):
        quantlora.load_adapter(tiny_llama(), tmp_path, key_mapping={"blocks": "layers"})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("modules_to_save", ["lm_head"]),
        ("trainable_token_indices", {"model.language_model.embed_tokens": [3, 5]}),
        ("trainable_token_indices", [3, 5]),
    ],
)
@pytest.mark.parametrize("kind", OLD)
def test_what_is_trained_besides_lora_loads_by_its_old_name(kind, field, value, tmp_path):
    new = OLD[kind][1]
    model = quantlora.wrap(made(kind), r=2, target_modules=LAYERS, **{field: value})
    want = trained(model)
    quantlora.save_adapter(model, tmp_path)
    rename(tmp_path, new, target_modules=["q_proj", "v_proj"], **{field: old_value(new, value)})
    model = quantlora.load_adapter(made(kind), tmp_path)
    assert torch.equal(model(input_ids=IDS).logits, want)


def test_two_tensors_of_one_name_are_refused(tmp_path):
    saved(tiny_llama(), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    key = next(iter(tensors))
    save_file(tensors | {"module." + key: tensors[key].clone()}, file, {"format": "pt"})
    with pytest.raises(AdapterFileError, match="both belong to"):
        quantlora.load_adapter(tiny_llama(), tmp_path)


def test_an_expression_that_is_none_is_refused(tmp_path):
    saved(tiny_llama(), tmp_path)
    with pytest.raises(AdapterFileError, match="no valid expression"):
        quantlora.load_adapter(tiny_llama(), tmp_path, key_mapping={"(": ""})
