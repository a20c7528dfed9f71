"""`quantlora.load` of GGUF files: the weights that Transformers has, without making them float."""

from __future__ import annotations

import copy

import pytest
import torch
from quantlora_gguf import GgufEmbedding, GgufFile, GgufLinear
from torch import Tensor, nn

import quantlora
from tests.tools.versions import IS_TRANSFORMERS_5

pytest.importorskip("gguf")
pytest.importorskip("accelerate")
if not IS_TRANSFORMERS_5:
    pytest.skip("loads with Transformers 5", allow_module_level=True)

from transformers import AutoModelForCausalLM

from .tiny_files import FAMILIES, write_tiny

QUICK = ("llama", "gemma3")
ARCHITECTURES = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES
]
IDS = torch.arange(7)[None]


def float_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors, the packed ones unpacked."""
    state = dict(model.state_dict())
    for path, module in model.named_modules():
        if isinstance(module, (GgufLinear, GgufEmbedding)):
            state[f"{path}.weight"] = module.dequantize()
    return state


def packed_paths(model: nn.Module) -> set[str]:
    kinds = (GgufLinear, GgufEmbedding)
    return {path for path, module in model.named_modules() if isinstance(module, kinds)}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_model_is_the_one_that_transformers_unpacks(architecture, tied, tmp_path):
    path = write_tiny(tmp_path, architecture, tied=tied)
    model = quantlora.load(path)
    dtype = {"dtype": torch.float32}
    wanted = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, **dtype).eval()
    found = float_state(model)
    for name, value in wanted.state_dict().items():
        assert torch.equal(found[name], value) or torch.equal(found[name].t(), value), name
    assert packed_paths(model)
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, wanted(IDS).logits, rtol=1e-5, atol=1e-5)


def test_a_model_that_transformers_has_dequantized_is_told_so(tmp_path):
    path = write_tiny(tmp_path, "llama")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name)
    (said,) = quantlora.explain(plain).warnings
    assert said.startswith("the checkpoint is packed (gguf), and Transformers has dequantized it")
    assert f"quantlora.load({str(tmp_path)!r}, gguf_file={path.name!r}) keeps them packed" in said
    assert not quantlora.explain(quantlora.load(path)).warnings


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_matrix_of_the_file_stays_packed(architecture, tmp_path, recwarn):
    path = write_tiny(tmp_path, architecture)
    packed = {name for name, tensor in GgufFile(path).tensors.items() if tensor.kind is not None}
    model = quantlora.load(path)
    weights = {model.get_submodule(layer).weight for layer in packed_paths(model)}
    assert len(weights) == len(packed)
    assert not [warning for warning in recwarn if path.name in str(warning.message)]


@pytest.mark.parametrize("block_type", ["Q4_1", "Q5_0", "BF16"])
def test_the_blocks_are_the_files_bytes(block_type, tmp_path):
    path = write_tiny(tmp_path, "gemma3", block_type)
    file, model = GgufFile(path), quantlora.load(path)
    given = file.packed("blk.1.ffn_down.weight")
    assert torch.equal(model.model.layers[1].mlp.down_proj.weight, given)
    assert torch.equal(model.model.embed_tokens.weight, file.packed("token_embd.weight"))
    assert model.model.embed_tokens.block_type == block_type


def test_moved_rows_are_the_files_rows(tmp_path):
    path = write_tiny(tmp_path, "llama")
    given, own = GgufFile(path).packed("blk.0.attn_q.weight"), quantlora.load(path).model.layers[0]
    found = own.self_attn.q_proj.weight
    assert not torch.equal(found, given)
    assert sorted(map(bytes, found.numpy())) == sorted(map(bytes, given.numpy()))


def test_a_tied_head_has_the_very_blocks_of_the_embedding(tmp_path):
    model = copy.deepcopy(quantlora.load(write_tiny(tmp_path, "gemma3", tied=True)))
    assert isinstance(model.lm_head, GgufLinear)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_the_dtype_asked_for_is_computed_in(tmp_path):
    model = quantlora.load(write_tiny(tmp_path, "gemma3"), dtype=torch.bfloat16)
    assert model(IDS).logits.dtype == model.dtype == torch.bfloat16
    assert model.model.embed_tokens.dtype == torch.bfloat16


@pytest.mark.parametrize("source", ["folder", "file"])
def test_a_folder_with_the_name_of_its_file_is_the_file(source, tmp_path):
    path = write_tiny(tmp_path, "llama")
    if source == "file":
        assert packed_paths(quantlora.load(str(path)))
    else:
        assert packed_paths(quantlora.load(tmp_path, gguf_file=path.name))


def test_an_adapter_trains_on_the_blocks_and_comes_back(tmp_path):
    path = write_tiny(tmp_path, "llama")
    model = quantlora.wrap(quantlora.load(path), r=2)
    before = model.state_dict()["model.layers.0.mlp.up_proj.base_layer.weight"].clone()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    assert torch.equal(model.model.layers[0].mlp.up_proj.base_layer.weight, before)
    quantlora.save_adapter(model, tmp_path / "adapter")
    again = quantlora.load_adapter(quantlora.load(path), tmp_path / "adapter")
    with torch.no_grad():
        assert torch.equal(again.eval()(IDS).logits, model.eval()(IDS).logits)


@pytest.mark.filterwarnings("error::quantlora.AdapterWarning")
def test_an_adapter_over_a_file_is_saved_without_a_word(tmp_path):
    model = quantlora.wrap(quantlora.load(write_tiny(tmp_path, "llama")), r=2)
    quantlora.save_adapter(model, tmp_path / "adapter")


def test_what_is_saved_by_transformers_loads_again(tmp_path):
    model = quantlora.load(write_tiny(tmp_path, "gemma3", tied=True))
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert packed_paths(again) == packed_paths(model)
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_another_format_is_refused(tmp_path):
    path = write_tiny(tmp_path, "llama")
    with pytest.raises(quantlora.BackendError, match="packed already, as a GGUF file"):
        quantlora.load(path, backend="normalfloat")


def test_what_the_model_lacks_and_what_it_has_no_use_for_are_named(tmp_path):
    path = write_tiny(tmp_path, "llama")
    path.write_bytes(path.read_bytes().replace(b"blk.1.ffn_up.w", b"blk.1.ffn_xp.w"))
    with pytest.raises(quantlora.ConfigError, match=r"1 parameters .*1\.mlp\.up_proj\.weight"):
        quantlora.load(path)


def test_metadata_of_another_model_name_the_first_tensor_that_differs(tmp_path):
    path = write_tiny(tmp_path, "llama")
    key = b"llama.feed_forward_length" + (4).to_bytes(4, "little")
    whole = path.read_bytes()
    at = whole.index(key) + len(key)
    path.write_bytes(whole[:at] + (256).to_bytes(4, "little") + whole[at + 4 :])
    with pytest.raises(quantlora.ConfigError, match=r"blk\.0\.ffn_\w+\.weight is \(\d+, \d+\)"):
        quantlora.load(path)


def test_an_architecture_without_names_is_refused_with_what_to_do(tmp_path):
    path = write_tiny(tmp_path, "llama")
    path.write_bytes(path.read_bytes().replace(b"llama", b"lemma"))
    with pytest.raises(quantlora.ConfigError, match="lemma"):
        quantlora.load(path)
