"""`LoadRequest.config`: what a plugin that loads sees of a folder or a hub id."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantlora import LoadRequest


def test_a_folder_s_config_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["A"]}')
    assert LoadRequest(str(tmp_path)).config == {"architectures": ["A"]}


def test_a_subfolder_has_its_own(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "config.json").write_text('{"inner": true}')
    request = LoadRequest(str(tmp_path), arguments={"subfolder": "inner"})
    assert request.config == {"inner": True}


@pytest.mark.parametrize("text", [None, "", "[]", "{", b"\xff\xfe"])
def test_what_cannot_be_read_is_empty(tmp_path: Path, text: str | bytes | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert LoadRequest(str(tmp_path)).config == {}


@pytest.mark.parametrize("source", ["./nowhere", "no/such/id/of/the/hub", "someone/not-cached"])
def test_a_name_of_nothing_is_empty(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert LoadRequest(source).config == {}


def test_a_hub_id_s_config_is_that_of_its_revision(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repo = tmp_path / "models--someone--model"
    for revision in ("0" * 40, "1" * 40):
        (repo / "snapshots" / revision).mkdir(parents=True)
        (repo / "snapshots" / revision / "config.json").write_text(f'{{"of": "{revision[0]}"}}')
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    given = {"cache_dir": str(tmp_path)}
    assert LoadRequest("someone/model", arguments=given).config == {"of": "0"}
    given["revision"] = "1" * 40
    assert LoadRequest("someone/model", arguments=given).config == {"of": "1"}
