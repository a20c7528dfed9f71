"""A load into a packed folder goes on where it was stopped, and never mixes two sources."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import quantlora
from quantlora.errors import BackendError, ConfigError
from quantlora.loading import pack_on_arrival
from quantlora.loading.packing_folder import PackingFolder
from quantlora.testing.models import save_tiny_llama
from tests.tools.expert_models import MODELS, mixtral
from tests.tools.versions import IS_TRANSFORMERS_5

pytestmark = pytest.mark.skipif(not IS_TRANSFORMERS_5, reason="Transformers 4 packs nothing so")

#: Loads, and is killed when so many files are written.
KILLED = """
import os, signal, sys, quantlora
from quantlora.loading import pack_on_arrival
from quantlora.loading.packing_folder import PackingFolder
write = PackingFolder.write
def stopping(self, module):
    write(self, module)
    if len(list(self.path.glob("model-*"))) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
PackingFolder.write = stopping
quantlora.load(sys.argv[1], backend="normalfloat", packed_folder=sys.argv[2])
"""

#: One of several processes; notes how many layers and stacks it has packed.
SHARED = """
import os, sys, quantlora
from quantlora.loading import pack_on_arrival
packed = []
def counted(name):
    work = getattr(pack_on_arrival, name)
    def call(*args):
        packed.extend(args[2] if name == "pack_experts" else [name])
        return work(*args)
    setattr(pack_on_arrival, name, call)
for name in ("pack_experts", "check_packable"):
    counted(name)
joined = pack_on_arrival.PackOnArrival._pack_stack
def stacked(self, name, experts, model):
    if name.rpartition(".")[0] not in self._others:
        packed.append(name)
    joined(self, name, experts, model)
pack_on_arrival.PackOnArrival._pack_stack = stacked
model = quantlora.load(sys.argv[1], backend="normalfloat", packed_folder=sys.argv[2])
assert not any(tensor.is_meta for tensor in model.state_dict().values())
open(f"{sys.argv[2]}.{os.environ['RANK']}", "w").write(str(len(packed)))
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    mixtral().save_pretrained(tmp_path / "float")
    return tmp_path / "float"


def load_into(folder: Path, source: Path, **given: Any) -> nn.Module:
    return quantlora.load(source, **{"backend": "normalfloat", "packed_folder": folder, **given})


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def stop_after(monkeypatch: pytest.MonkeyPatch, files: int) -> None:
    """The disk is full after so many files."""
    write = PackingFolder.write

    def limited(self: PackingFolder, module: Any) -> None:
        if len(list(self.path.glob("model-*"))) == files:
            raise OSError(28, "No space left on device")
        write(self, module)

    monkeypatch.setattr(PackingFolder, "write", limited)


def begun(folder: Path, source: Path, **given: Any) -> None:
    """A load that was stopped after two files."""
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises((OSError, ConfigError)):
            load_into(folder, source, **given)
    assert len(list(folder.glob("model-*.safetensors"))) == 2


def assert_same_state(found: nn.Module, wanted: nn.Module) -> None:
    left, right = found.state_dict(), wanted.state_dict()
    assert left.keys() == right.keys()
    assert not [name for name in right if not torch.equal(left[name], right[name])]


@pytest.mark.slow
@pytest.mark.parametrize("files", [1, 5, 12])
def test_a_killed_load_is_continued_to_the_same_bytes(
    files: int, source: Path, tmp_path: Path
) -> None:
    line = [sys.executable, "-c", KILLED, str(source), str(tmp_path / "killed"), str(files)]
    assert subprocess.run(line, check=False, capture_output=True).returncode == -9
    assert not (tmp_path / "killed/config.json").exists()
    load_into(tmp_path / "killed", source)
    load_into(tmp_path / "whole", source)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_processes_share_the_work_and_each_has_the_whole(family: str, tmp_path: Path) -> None:
    MODELS[family]().save_pretrained(tmp_path / "float")
    line = [sys.executable, "-c", SHARED, tmp_path / "float", tmp_path / "shared"]
    given = [{**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"} for rank in range(2)]
    started = [subprocess.Popen([*map(str, line)], env=env) for env in given]
    assert [process.wait(300) for process in started] == [0, 0]
    wanted = load_into(tmp_path / "alone", tmp_path / "float")
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")
    assert sum(int(Path(f"{tmp_path}/shared.{rank}").read_text()) for rank in range(2)) == 12
    assert_same_state(quantlora.load(tmp_path / "shared"), wanted)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_what_was_packed_is_not_packed_again(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    MODELS[family]().save_pretrained(tmp_path / "float")
    wanted = load_into(tmp_path / "packed", tmp_path / "float", bits=3)
    (tmp_path / "packed/config.json").unlink()
    for name in ("pack_stack", "pack_experts", "check_packable"):  # what packing begins with
        monkeypatch.setattr(pack_on_arrival, name, None)
    again = load_into(tmp_path / "packed", tmp_path / "float", bits=3)
    assert_same_state(again, wanted)


@pytest.mark.parametrize("backend", ["normalfloat", "bitsandbytes_4bit"])
def test_the_folder_loads_as_what_was_packed(backend: str, source: Path, tmp_path: Path) -> None:
    given = {"backend": backend, "dtype": torch.bfloat16}
    wanted = quantlora.load(source, **given)
    begun(tmp_path / "packed", source, **given)
    model = load_into(tmp_path / "packed", source, **given)
    for found in (model, quantlora.load(tmp_path / "packed")):
        assert_same_state(found, wanted)
    assert_same_state(load_into(tmp_path / "packed", source, **given), wanted)


def test_a_dense_model_and_its_tokenizer_are_there_too(tmp_path: Path) -> None:
    source = Path(save_tiny_llama(tmp_path / "llama"))
    (source / "tokenizer_config.json").write_text("{}")
    model = load_into(tmp_path / "packed", source)
    assert (tmp_path / "packed/tokenizer_config.json").read_text() == "{}"
    assert_same_state(quantlora.load(tmp_path / "packed"), model)


@pytest.mark.parametrize("finished", [False, True])
def test_a_changed_source_is_refused(finished: bool, source: Path, tmp_path: Path) -> None:
    (load_into if finished else begun)(tmp_path / "packed", source)
    before = contents(tmp_path / "packed")
    model = mixtral()
    nn.init.constant_(model.model.norm.weight, 2.0)
    model.save_pretrained(source)
    text = (
        f"packed_folder: {tmp_path / 'packed'} is packed from another model.safetensors than "
        f"{source} has now. Put that file back, or give another folder, or remove it to pack anew."
    )
    with pytest.raises(ConfigError, match=re.escape(text)):
        load_into(tmp_path / "packed", source)
    assert contents(tmp_path / "packed") == before


def test_a_source_that_was_only_touched_is_the_same(source: Path, tmp_path: Path) -> None:
    begun(tmp_path / "packed", source)
    (source / "model.safetensors").touch()
    assert load_into(tmp_path / "packed", source)


def test_a_source_that_changes_meanwhile_makes_no_checkpoint(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = PackingFolder.write

    def changing(self: PackingFolder, module: Any) -> None:
        write(self, module)
        (source / "config.json").write_text(json.dumps({"model_type": "mixtral"}))

    monkeypatch.setattr(PackingFolder, "write", changing)
    with pytest.raises(ConfigError, match=r"packed from another config\.json than"):
        load_into(tmp_path / "packed", source)
    assert not (tmp_path / "packed/config.json").exists()


def test_other_settings_are_refused(source: Path, tmp_path: Path) -> None:
    begun(tmp_path / "packed", source, bits=4)
    text = (
        f"packed_folder: {tmp_path / 'packed'} is packed with quantize_options {{'bits': '4'}}, "
        f"and {{'bits': '2'}} was asked for: ask for the same, or give another folder, or remove "
        f"it to pack anew."
    )
    with pytest.raises(ConfigError, match=re.escape(text)):
        load_into(tmp_path / "packed", source, bits=2)


def test_settings_that_are_refused_leave_nothing(source: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError):
        load_into(tmp_path / "packed", source, bits=7)
    assert not (tmp_path / "packed").exists()


def test_a_folder_of_something_else_is_refused(source: Path) -> None:
    with pytest.raises(ConfigError, match="exists and is not an empty folder, nor one"):
        load_into(source, source)


def test_a_folder_without_a_backend_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"packed_folder is for float models that backend=\.\.\."):
        load_into(tmp_path / "packed", source, backend="auto")
