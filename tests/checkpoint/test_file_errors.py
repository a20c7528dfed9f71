"""What is wrong with an adapter's files is said, and the model is as it was."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import struct
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st
from safetensors.torch import load_file, save_file

import quantlora
from quantlora import AdapterError, AdapterFileError, ConfigError
from quantlora.checkpoint.location import folders_of
from quantlora.names import check_name

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture
def saved(make_wrapped, tmp_path):
    """A folder with a sound adapter in it."""
    return quantlora.save_adapter(make_wrapped(), tmp_path / "adapter")


@pytest.fixture
def refused(make_base, logits):
    """Loads onto a fresh model, which must fail and leave it untouched; returns the message."""

    def load(folder, kind=AdapterFileError, model=None, **options):
        model = model or make_base()
        before = {name: type(module) for name, module in model.named_modules()}
        flags = [p.requires_grad for p in model.parameters()]
        attributes = set(vars(model))
        with pytest.raises(kind) as caught:
            quantlora.load_adapter(model, folder, **options)
        assert {name: type(module) for name, module in model.named_modules()} == before
        assert [p.requires_grad for p in model.parameters()] == flags
        assert set(vars(model)) == attributes
        return str(caught.value)

    return load


def change_config(folder, **fields):
    file = folder / CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def change_weights(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def test_missing_folder(refused, tmp_path):
    assert "no such folder" in refused(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["a" * 5000, "a/" * 3000, "\0", 5, None, b"adapter"])
def test_a_name_that_no_file_system_takes_is_refused(make_base, name):
    with pytest.raises(AdapterFileError, match=r"no such folder|a string, not from"):
        quantlora.load_adapter(make_base(), name)


def test_file_in_place_of_the_folder(refused, saved):
    assert "is a file" in refused(saved / WEIGHTS)


def test_folder_without_config(refused, tmp_path):
    assert "no adapter_config.json" in refused(tmp_path)


def test_folder_whose_sub_folders_hold_adapters_names_them(refused, make_wrapped, tmp_path):
    quantlora.save_adapter(make_wrapped(adapter_name="poems"), tmp_path, "poems")
    assert "Its sub-folders hold poems" in refused(tmp_path)


def test_folder_without_weights(refused, saved):
    (saved / WEIGHTS).unlink()
    assert "no adapter_model.safetensors" in refused(saved)


def test_hub_id_that_cannot_be_fetched(refused, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "cannot be fetched from the Hugging Face hub" in refused("nobody/nothing-here")


@pytest.mark.parametrize("kept", [0, 4, 8, 100, 0.5, 0.99])
def test_truncated_weights(refused, saved, kept):
    whole = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(whole[: int(kept * len(whole)) if kept < 1 else kept])
    assert "damaged or incomplete" in refused(saved)


def test_header_that_claims_to_be_huge(refused, saved):
    whole = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(struct.pack("<Q", 2**40) + whole[8:])
    assert "damaged or incomplete" in refused(saved)


def test_header_that_is_not_json(refused, saved):
    whole = bytearray((saved / WEIGHTS).read_bytes())
    whole[20:40] = b"\xff" * 20
    (saved / WEIGHTS).write_bytes(bytes(whole))
    assert "damaged or incomplete" in refused(saved)


class Bomb:
    """Unpickling it would end the test run."""

    def __reduce__(self):
        return sys.exit, ("a pickle was opened",)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", ["adapter_model.bin", WEIGHTS])
def test_pickle_is_refused_and_never_opened(refused, saved, name, protocol):
    (saved / WEIGHTS).unlink()
    (saved / name).write_bytes(pickle.dumps(Bomb(), protocol))
    assert "is a pickle, and is not opened" in refused(saved)


@pytest.mark.parametrize("name", ["adapter_model.bin", WEIGHTS])
def test_torch_save_is_refused_as_a_pickle(refused, saved, name):
    (saved / WEIGHTS).unlink()
    torch.save({"x": torch.ones(2)}, saved / name)
    assert "is a pickle, and is not opened" in refused(saved)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read"),
        ("[]", "expected an object"),
        ('{"r": 4}', "peft_type is None"),
        ('{"peft_type": "IA3"}', "peft_type is 'IA3'"),
        ("[" * 100_000, "cannot be read"),
        ("\xff\xfe", "cannot be read"),
    ],
)
def test_config_that_is_none_of_ours(refused, saved, text, words):
    (saved / CONFIG).write_bytes(text.encode("latin-1"))
    assert words in refused(saved)


@pytest.mark.parametrize(
    "fields",
    [
        {"r": "4"},
        {"r": 0},
        {"r": True},
        {"lora_alpha": None},
        {"lora_dropout": 2},
        {"target_modules": [1]},
        {"target_modules": {"q_proj": 1}},
        {"rank_pattern": {"q_proj": "x"}},
        {"rank_pattern": {"(": 2}},
        {"use_rslora": "yes"},
        {"bias": "some"},
    ],
    ids=str,
)
def test_config_field_of_the_wrong_type_or_value_is_named(refused, saved, fields):
    change_config(saved, **fields)
    message = refused(saved)
    assert next(iter(fields)) in message
    assert str(saved) in message


def test_config_larger_than_any_is_not_read(refused, saved):
    with (saved / CONFIG).open("ab") as file:
        file.truncate(17 * 2**20)
    assert "larger than 16 MiB" in refused(saved)


def test_what_quantlora_cannot_compute_is_refused(refused, saved):
    change_config(saved, alora_invocation_tokens=[1, 2])
    assert "alora_invocation_tokens" in refused(saved)


def test_targets_that_the_model_does_not_have(refused, saved):
    change_config(saved, target_modules=["c_attn"])
    message = refused(saved)
    assert "does not fit this model" in message
    assert "q_proj" in message


def test_adapter_of_a_deeper_model(refused, saved, make_base):
    message = refused(saved, model=make_base(num_hidden_layers=1))
    assert "7 layers that the model lacks" in message
    assert "near names" in message


def test_adapter_of_a_shallower_model(refused, saved, make_base):
    assert "lacks those of 7 targeted layers" in refused(
        saved, model=make_base(num_hidden_layers=3)
    )


def test_adapter_of_a_wider_model(refused, saved, make_base):
    message = refused(saved, model=make_base(hidden_size=64))
    assert "lora_A.weight: expected (4, 64), found (4, 32)" in message


def test_rank_that_is_not_the_file_s(refused, saved):
    change_config(saved, r=8)
    assert "expected (8, 32), found (4, 32)" in refused(saved)


def test_rank_larger_than_the_layer(refused, saved):
    change_config(saved, r=10**9)
    assert "has rank 1000000000 by its config" in refused(saved)


def test_missing_tensor_is_named(refused, saved):
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    change_weights(saved, lambda tensors: tensors.pop(key))
    assert "lora_B.weight: expected (32, 4), found nothing" in refused(saved)


def test_unknown_tensor_is_named(refused, saved):
    change_weights(saved, lambda tensors: tensors.update({"prompt.embedding": torch.ones(2)}))
    assert "prompt.embedding" in refused(saved)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_value_that_is_no_number_is_refused(refused, saved, value):
    change_weights(saved, lambda tensors: next(iter(tensors.values())).view(-1)[3:4].fill_(value))
    assert "NaN or infinity" in refused(saved)


def test_integers_are_no_weights(refused, saved):
    def to_int(tensors):
        tensors.update({key: tensor.to(torch.int8) for key, tensor in tensors.items()})

    change_weights(saved, to_int)
    assert "expected a float type" in refused(saved)


def test_file_without_tensors(refused, saved):
    save_file({}, saved / WEIGHTS)
    assert "holds no tensors" in refused(saved)


def test_name_that_is_taken(saved, make_wrapped, refused):
    message = refused(saved, AdapterError, model=make_wrapped(), adapter_name="default")
    assert "exists already" in message


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_link_out_of_the_folder_is_not_followed(refused, saved, name, tmp_path):
    (saved / name).rename(tmp_path / name)
    (saved / name).symlink_to(tmp_path / name)
    assert "outside the folder, and is not followed" in refused(saved)


def test_links_of_the_hubs_cache_are_followed(saved, tmp_path, make_base):
    repo = tmp_path / "models--owner--name"
    snapshot, blobs = repo / "snapshots" / "abc", repo / "blobs"
    snapshot.parent.mkdir(parents=True)
    saved.rename(blobs)
    snapshot.mkdir()
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    assert quantlora.active_adapters(quantlora.load_adapter(make_base(), snapshot)) == ["default"]


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_pipe_in_place_of_a_file_is_not_opened(refused, saved, name):
    (saved / name).unlink()
    os.mkfifo(saved / name)
    assert "is no regular file, and is not opened" in refused(saved)


def test_hole_that_the_header_does_not_know_is_not_read(refused, saved):
    with (saved / WEIGHTS).open("ab") as file:
        file.truncate(2**42)
    assert "its size is not what its header says" in refused(saved)


def test_expression_that_takes_forever_is_refused(refused, saved):
    change_config(saved, target_modules=r"(.*.*.*.*.*.*.*.*)\1x?(?<!\w)")
    assert "takes longer than 0.2 s" in refused(saved)


@pytest.mark.parametrize(
    "note",
    [{"base": 1}, {"formats": 5}, {"formats": [5]}, {"formats": [{"layers": [["x"]]}]}, []],
    ids=str,
)
def test_note_of_another_form_is_ignored_with_a_warning(saved, make_base, note):
    (saved / "quantlora.json").write_text(json.dumps(note))
    with pytest.warns(quantlora.AdapterWarning, match="cannot be read and is ignored"):
        quantlora.load_adapter(make_base(), saved)


LEADING_OUT = [
    "../up", "", ".", "..", "a.b", "/tmp", "a/../../b", "a//b", "a/", "..\\up", "C:up", "a\0b",
]  # fmt: skip


@pytest.mark.parametrize("name", LEADING_OUT)
def test_adapter_name_that_could_leave_the_folder_is_refused(saved, name, make_base):
    with pytest.raises(ConfigError, match="it becomes a folder's name"):
        quantlora.load_adapter(make_base(), saved, name)


@given(name=st.text(alphabet="ab./\\ ~:\0\n\u2024\u2025\uff0eé", min_size=1, max_size=9))
def test_whatever_an_adapter_is_called_it_is_saved_inside_its_folder(name):
    root = Path(os.path.realpath("/somewhere/out"))
    with contextlib.suppress(ConfigError):
        check_name(name)
        assert Path(os.path.realpath(folders_of(root, name)[1])).is_relative_to(root)


@pytest.mark.parametrize("name", ["a/b", "sql v2", "~", "\uff0e\uff0e/up"])
def test_a_free_name_writes_nothing_beside_the_folder(make_wrapped, tmp_path, name):
    quantlora.save_adapter(make_wrapped(adapter_name=name), tmp_path / "in" / "out", name)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["out"]


def test_a_link_in_a_name_s_first_part_is_not_written_through(make_wrapped, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "owner").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AdapterFileError, match="link that leads elsewhere"):
        quantlora.save_adapter(
            make_wrapped(adapter_name="owner/name"), tmp_path / "out", "owner/name"
        )
    assert not any((tmp_path / "elsewhere").iterdir())


def test_link_in_place_of_an_adapter_s_folder_is_not_written_through(make_wrapped, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "second").symlink_to(tmp_path / "elsewhere")
    model = make_wrapped(adapter_name="second")
    with pytest.raises(AdapterFileError, match="link that leads elsewhere"):
        quantlora.save_adapter(model, tmp_path / "out", "second")
    assert not any((tmp_path / "elsewhere").iterdir())


def test_saving_to_a_file_is_refused(make_wrapped, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AdapterFileError, match="is a file"):
        quantlora.save_adapter(make_wrapped(), tmp_path / "file")


def test_unknown_adapter_is_not_saved(make_wrapped, tmp_path):
    with pytest.raises(AdapterError, match=r"unknown adapter 'defualt'.*'default'"):
        quantlora.save_adapter(make_wrapped(), tmp_path / "out", "defualt")
    assert not (tmp_path / "out").exists()


def test_sharded_parameter_is_never_written_as_an_empty_tensor(make_wrapped, tmp_path):
    model = make_wrapped()
    empty = {name: torch.empty(0) for name in model.state_dict() if "lora_A" in name}
    with pytest.raises(AdapterFileError, match="sharded"):
        quantlora.save_adapter(model, tmp_path / "out", state_dict=empty)
    assert not list((tmp_path / "out").iterdir())


def test_a_folder_that_cannot_be_made_is_named(make_wrapped, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(AdapterFileError, match=r"Not a directory\. .*is as it was"):
        quantlora.save_adapter(make_wrapped(), tmp_path / "file" / "adapter")
