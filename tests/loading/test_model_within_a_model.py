"""A checkpoint written from the base model, read into the class with a head, and the reverse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

import quantlora
from quantlora.testing.models import tiny_llama
from tests.tools.versions import IS_TRANSFORMERS_5

pytestmark = pytest.mark.skipif(not IS_TRANSFORMERS_5, reason="Transformers 4 loads otherwise")

IDS = torch.arange(8)[None]
BACKENDS = ["normalfloat", "bitsandbytes_4bit"]


def written(model: Any, backend: str, folder: Path) -> Path:
    """A checkpoint whose config.json is the work of the adapters' leaving."""
    quantlora.wrap(model, backend=backend)
    quantlora.unload(model)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_base_model_is_read_from_the_file_of_a_whole_one(backend: str, tmp_path: Path) -> None:
    model = tiny_llama().eval()
    read = AutoModel.from_pretrained(written(model, backend, tmp_path))
    with torch.no_grad():
        assert torch.equal(read(IDS)[0], model.model(IDS)[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_whose_inner_model_was_packed_is_read_whole(backend: str, tmp_path: Path) -> None:
    model = tiny_llama().eval()
    quantlora.wrap(model.model, backend=backend)
    quantlora.unload(model.model)
    model.save_pretrained(tmp_path)
    read = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(read(IDS).logits, model(IDS).logits)


def test_a_base_model_is_read_from_a_packed_checkpoint(tmp_path: Path) -> None:
    model = quantlora.quantize(tiny_llama(), backend="normalfloat").eval()
    quantlora.save_packed(model, tmp_path / "packed")
    read = quantlora.load(tmp_path / "packed", model_class=AutoModel)
    with torch.no_grad():
        assert torch.equal(read(IDS)[0], model.model(IDS)[0])


def test_a_packed_head_that_a_base_model_lacks_is_passed_over(tmp_path: Path) -> None:
    model = tiny_llama().eval()
    quantlora.wrap(model, backend="normalfloat", target_modules=["q_proj", "lm_head"])
    quantlora.unload(model)
    model.save_pretrained(tmp_path)
    read = AutoModel.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(read(IDS)[0], model.model(IDS)[0])


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(quantlora.ConfigError, match=r"encoder\.q: .* is it the class"):
        quantlora.in_this_model(tiny_llama(), {"encoder.q": 4})
