"""The float weights of a checkpoint, one at a time."""

import json

import pytest
import torch
from safetensors.torch import save_file

from quantlora import ConfigError, TensorFile, WeightFiles, open_reference

TENSORS = {
    "model.a.weight": torch.randn(3, 5),
    "model.b.weight": torch.randn(4, 2).bfloat16(),
    "count": torch.tensor(7),
    "codes": torch.arange(9, dtype=torch.uint8),
    "nothing": torch.empty(0, 4),
}


@pytest.fixture
def file(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors", {"format": "pt"})
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("key", TENSORS)
def test_a_tensor_is_read_as_it_was_saved(file, key):
    opened = TensorFile(file)
    assert torch.equal(opened.tensor(key), TENSORS[key])
    assert (opened.shape(key), opened.dtype(key)) == (tuple(TENSORS[key].shape), TENSORS[key].dtype)
    assert opened.metadata == {"format": "pt"}


@pytest.mark.parametrize("size", [0, 5, 40, -1])
def test_a_cut_file_is_named(file, size):
    data = file.read_bytes()
    file.write_bytes(data[:size])
    with pytest.raises(ConfigError, match=r"model\.safetensors is damaged or incomplete"):
        read_all(file)


def read_all(file):
    opened = TensorFile(file)
    return [opened.tensor(key) for key in opened.keys]


@pytest.mark.parametrize("path", ["model.a", "a", "wrapper.model.a"])
def test_a_prefix_may_be_on_one_side_only(file, path):
    assert torch.equal(open_reference(file.parent)(path), TENSORS["model.a.weight"])


def test_an_unknown_path_names_what_is_near(file):
    with pytest.raises(ConfigError, match=r"unknown weight 'model\.aa\.weight'.*model\.a\.weight"):
        open_reference(file.parent)("model.aa")


def test_each_shard_is_opened_once(tmp_path):
    for name in ("a", "b"):
        key = f"model.{name}.weight"
        save_file({key: TENSORS[key]}, tmp_path / f"{name}.safetensors")
    places = {f"model.{name}.weight": f"{name}.safetensors" for name in ("a", "b")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    files = WeightFiles(tmp_path)
    for path in ("model.a", "model.b", "model.a"):
        assert torch.equal(files(path), TENSORS[f"{path}.weight"])
    assert files.opened("model.a.weight") is files.opened("model.a.weight")


def test_a_folder_without_safetensors_says_how_to_make_them(tmp_path):
    with pytest.raises(ConfigError, match="save_pretrained"):
        open_reference(tmp_path)


def test_what_is_neither_a_folder_nor_on_the_hub_is_named():
    with pytest.raises(ConfigError, match="'no/such-model' is neither a folder"):
        open_reference("no/such-model")
