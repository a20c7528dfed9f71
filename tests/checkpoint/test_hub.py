"""An id on the hub in place of a folder; the hub itself is a cache filled by the test."""

from __future__ import annotations

import shutil

import pytest
import torch

import quantlora


@pytest.fixture
def cached(make_wrapped, tmp_path, monkeypatch):
    """A cache that holds ``someone/adapter`` as a download would leave it: files are links."""
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    model = make_wrapped()
    saved = quantlora.save_adapter(model, tmp_path / "saved")
    repo = tmp_path / "cache" / "models--someone--adapter"
    snapshot = repo / "snapshots" / ("0" * 40)
    for folder in (snapshot, repo / "blobs", repo / "refs"):
        folder.mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    for number, file in enumerate(saved.iterdir()):
        shutil.copy(file, repo / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    return model


def test_adapter_in_the_hub_s_cache_loads_by_its_id(cached, make_base, logits):
    again = quantlora.load_adapter(make_base(), "someone/adapter")
    assert torch.equal(logits(again), logits(cached))


def test_unknown_revision_is_an_error_that_names_the_id(cached, make_base):
    with pytest.raises(quantlora.AdapterFileError, match="someone/adapter"):
        quantlora.load_adapter(make_base(), "someone/adapter", revision="1" * 40)
