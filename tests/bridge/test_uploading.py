"""`push_to_hub`: the adapter and its card, through the hub's own client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

import quantlora
from quantlora.testing.models import tiny_llama
from tests.bridge.local_hub import Files, local_hub


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Iterator[Files]:
    """Those of the repository ``me/mine``."""
    found: Files = {}
    with local_hub(found) as address:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield found


def wrapped() -> Any:
    return quantlora.wrap(tiny_llama(num_hidden_layers=1), r=2, init_lora_weights=False)


def test_the_adapter_and_its_card_are_uploaded(files: Files, tmp_path: Path) -> None:
    model = wrapped()
    model.push_to_hub("me/mine", token="t", tags=["mine"])
    assert set(files) >= {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    card = files["README.md"].decode()
    assert "# mine\n" in card
    assert "- mine\n" in card.split("---")[1]
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    again = quantlora.load_adapter(tiny_llama(num_hidden_layers=1), tmp_path)
    ids = torch.arange(4)[None]
    assert torch.equal(again(ids).logits, model.eval()(ids).logits)


def test_a_card_that_was_edited_there_stays(files: Files) -> None:
    files["README.md"] = b"# My own words\n"
    model = wrapped()
    model.push_to_hub("me/mine", token="t")
    assert "# My own words" in files["README.md"].decode()


def test_save_pretrained_uploads_too(files: Files, tmp_path: Path) -> None:
    model = wrapped()
    model.save_pretrained(tmp_path, push_to_hub=True, repo_id="me/mine", token="t")
    assert "adapter_model.safetensors" in files
