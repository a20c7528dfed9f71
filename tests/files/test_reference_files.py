"""Damaged and hostile files of float weights end in an error that names them, never a raw one."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from quantlora.errors import ConfigError
from quantlora.files.reference import WeightFiles

INDEX = "model.safetensors.index.json"
GOOD = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


def header(text: bytes, data: bytes = bytes(16)) -> bytes:
    return struct.pack("<Q", len(text)) + text + data


def entry(**changes: Any) -> bytes:
    return header(json.dumps({"a.weight": {**GOOD, **changes}}).encode())


FILES: dict[str, bytes] = {
    "empty": b"",
    "cut in the length": b"\x10\x00",
    "longer than itself": struct.pack("<Q", 2**63) + b"{}",
    "no JSON": header(b"{a"),
    "no text": header(b"\xff\xfe\x00"),
    "a list": header(b"[]"),
    "nested without end": header(b"[" * 100_000),
    "metadata of another form": header(b'{"__metadata__": 3}'),
    "an entry of another form": header(b'{"a.weight": 3}'),
    "without dtype": entry(dtype=None),
    "a list of dtypes": entry(dtype=["F32"]),
    "without shape": entry(shape=None),
    "a negative shape": entry(shape=[-2, -2]),
    "a shape of words": entry(shape=["2", "2"]),
    "a huge shape": entry(shape=[2**40, 2**40]),
    "without offsets": entry(data_offsets=None),
    "one offset": entry(data_offsets=[0]),
    "offsets in the wrong order": entry(data_offsets=[16, 0]),
    "offsets before the data": entry(data_offsets=[-16, 0]),
    "offsets behind the end": entry(data_offsets=[16, 32]),
    "bytes that are not the shape's": entry(shape=[2, 3]),
}


@pytest.mark.parametrize("what", FILES)
def test_a_damaged_file_is_named(what: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(FILES[what])
    with pytest.raises(ConfigError, match=r"model\.safetensors is damaged"):
        WeightFiles(tmp_path)("a")


INDICES: dict[str, tuple[str, str]] = {
    "empty": ("", "cannot be read"),
    "a list": ("[]", "has no weight_map"),
    "nested without end": ("[" * 100_000, "cannot be read"),
    "no map": ("{}", "has no weight_map"),
    "a map of another form": ('{"weight_map": ["a.weight"]}', "has no weight_map"),
    "a file that is no name": ('{"weight_map": {"a.weight": 3}}', "has no weight_map"),
    "a file that is missing": ('{"weight_map": {"a.weight": "gone.safetensors"}}', "cannot be"),
    "a file that is a folder": ('{"weight_map": {"a.weight": "."}}', "is not in its folder"),
    "a key that is not in its file": ('{"weight_map": {"a.weight": "b.safetensors"}}', "lacks a"),
}


@pytest.mark.parametrize("what", INDICES)
def test_a_damaged_index_is_named(what: str, tmp_path: Path) -> None:
    text, message = INDICES[what]
    (tmp_path / INDEX).write_text(text)
    save_file({"b.weight": torch.ones(2, 2)}, tmp_path / "b.safetensors")
    with pytest.raises(ConfigError, match=message):
        WeightFiles(tmp_path)("a")


OUTSIDE: list[Callable[[Path], str]] = [
    lambda folder: "../secret.safetensors",
    lambda folder: "sub/../../secret.safetensors",
    lambda folder: "..\\secret.safetensors",
    lambda folder: str(folder.parent / "secret.safetensors"),
    lambda folder: "C:\\secret.safetensors",
    lambda folder: "",
]


@pytest.mark.parametrize("place", OUTSIDE)
def test_an_index_opens_no_file_outside_its_folder(
    place: Callable[[Path], str], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a.weight": torch.ones(2, 2)}, tmp_path / "secret.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a.weight": place(folder)}}))
    with pytest.raises(ConfigError, match="which is not in its folder, and is not opened"):
        WeightFiles(folder)


def linked(folder: Path, to: Path) -> Path:
    """``folder``, with an index that names ``sub/x.safetensors``, a link to the file ``to``."""
    (folder / "sub").mkdir(parents=True)
    to.parent.mkdir(parents=True, exist_ok=True)
    save_file({"a.weight": torch.ones(2, 2)}, to)
    (folder / "sub" / "x.safetensors").symlink_to(to)
    (folder / INDEX).write_text('{"weight_map": {"a.weight": "sub/x.safetensors"}}')
    return folder


@pytest.mark.parametrize("place", ["secret", "blobs/secret", "model-2/secret", "model/../secret"])
def test_a_link_that_leads_out_of_its_folder_is_not_opened(place: str, tmp_path: Path) -> None:
    folder = linked(tmp_path / "model", tmp_path / place)
    with pytest.raises(ConfigError, match=r"a link to .*secret, which is not in its folder"):
        WeightFiles(folder)


@pytest.mark.parametrize("name", ["model.safetensors", INDEX])
def test_a_link_in_place_of_the_only_file_is_not_opened(name: str, tmp_path: Path) -> None:
    linked(tmp_path / "model", tmp_path / "model" / "y")
    save_file({"a.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    (tmp_path / "model" / INDEX).rename(tmp_path / INDEX)
    (tmp_path / "model" / name).symlink_to(tmp_path / name)
    with pytest.raises(ConfigError, match=r"a link to .*, which is not in its folder"):
        WeightFiles(tmp_path / "model")


def test_a_folder_that_is_a_link_leads_out_no_more_than_others(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    linked(tmp_path / "outside", tmp_path / "outside" / "blob")
    (folder / "sub").symlink_to(tmp_path / "outside" / "sub")
    (folder / INDEX).write_text('{"weight_map": {"a.weight": "sub/x.safetensors"}}')
    with pytest.raises(ConfigError, match="which is not in its folder"):
        WeightFiles(folder)


@pytest.mark.parametrize("place", ["model/sub/y", "model/y"])
def test_links_within_the_folder_and_sub_folders_are_its_files(place: str, tmp_path: Path) -> None:
    linked(tmp_path / "model", tmp_path / place)
    (tmp_path / "by another name").symlink_to(tmp_path / "model")
    assert torch.equal(WeightFiles(tmp_path / "by another name")("a"), torch.ones(2, 2))


@pytest.mark.parametrize("inner", ["", "transformer"])
def test_a_snapshot_of_the_hub_s_cache_opens_its_own_blobs(inner: str, tmp_path: Path) -> None:
    repo = tmp_path / "models--owner--name"
    folder = linked(repo / "snapshots" / "0123abc" / inner, repo / "blobs" / "4567def")
    assert torch.equal(WeightFiles(folder)("a"), torch.ones(2, 2))


def test_a_snapshot_opens_no_blobs_of_other_models(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "0123abc"
    linked(snapshot, tmp_path / "models--owner--private" / "blobs" / "4567def")
    with pytest.raises(ConfigError, match="which is not in its folder, and is not opened"):
        WeightFiles(snapshot)
