"""Killed at any moment, a folder holds the old adapter or the new one, whole."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from quantlora.files import swap_folder as swapping
from quantlora.files.atomic_set import write_set
from quantlora.files.lock import locked

HERE = Path(__file__).parent
linux = pytest.mark.skipif(sys.platform != "linux", reason="folders are exchanged on Linux only")

FILES = ["adapter", "config", "note", "optimizer.pt", "runs", "weights"]


def write(folder, *texts, **options):
    names = ("config", "note", "weights")
    files = {n: lambda path, t=t: path.write_text(t) for n, t in zip(names, texts, strict=True)}
    write_set(folder, files, **options)


def read(folder):
    return [(folder / name).read_text() for name in ("config", "note", "weights")]


@linux
def test_kill_before_any_line_leaves_the_old_or_the_new_set(run_python, tmp_path):
    script = HERE / "killed_at_each_line.py"
    found = json.loads(run_python(script, tmp_path / "adapter").stdout)
    assert found["states"] == ["new", "old"]
    assert found["lines"] > 100
    assert found["left"] == FILES


@linux
def test_kill_before_any_line_of_a_first_save_leaves_nothing_or_the_set(run_python, tmp_path):
    script = HERE / "killed_at_each_line.py"
    found = json.loads(run_python(script, tmp_path / "adapter", "first").stdout)
    assert found["states"] == ["new", "none"]


@linux
def test_without_exchange_a_kill_leaves_a_set_or_none_but_never_a_mixture(run_python, tmp_path):
    script = HERE / "killed_at_each_line.py"
    found = json.loads(run_python(script, tmp_path / "adapter", "no-exchange").stdout)
    assert found["states"] == ["new", "none", "old"]
    assert found["left"] == FILES


@linux
def test_kill_of_real_saves_at_random_leaves_an_adapter_of_either_kind(run_python, tmp_path):
    found = json.loads(run_python(HERE / "killed_at_random.py", tmp_path).stdout)
    assert found["kills"] >= 10
    assert set(found["states"]) == {"2", "4"}


def test_new_weights_alone_are_one_rename_in_the_same_folder(tmp_path):
    write(tmp_path, "a", "a", "a")
    before = tmp_path.stat().st_ino
    write(tmp_path, "a", "a", "b")
    assert read(tmp_path) == ["a", "a", "b"]
    assert tmp_path.stat().st_ino == before


def test_same_files_again_touch_nothing(tmp_path):
    write(tmp_path, "a", "a", "a")
    before = (tmp_path / "weights").stat()
    write(tmp_path, "a", "a", "a")
    assert (tmp_path / "weights").stat() == before


@linux
def test_exchanged_folder_keeps_what_else_is_in_it(tmp_path):
    folder = tmp_path / "out"
    write(folder, "a", "a", "a")
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1" / "optimizer.pt").write_text("o")
    (folder / "link").symlink_to("checkpoint-1")
    folder.chmod(0o750)
    inode = (folder / "checkpoint-1" / "optimizer.pt").stat().st_ino
    write(folder, "b", "b", "b")
    assert read(folder) == ["b", "b", "b"]
    assert (folder / "link" / "optimizer.pt").stat().st_ino == inode
    assert (folder / "link").is_symlink()
    assert folder.stat().st_mode & 0o777 == 0o750
    assert sorted(os.listdir(tmp_path)) == ["out"]


@linux
def test_what_others_write_during_an_exchange_is_carried_over(tmp_path, monkeypatch):
    folder = tmp_path / "out"
    write(folder, "a", "a", "a")
    (folder / "state.json").write_text("old")
    exchange = swapping.exchange

    def late(one, other):
        (folder / "rng_state_1.pth").write_text("r")
        (folder / "state.tmp").write_text("new")
        os.replace(folder / "state.tmp", folder / "state.json")
        exchange(one, other)

    monkeypatch.setattr(swapping, "exchange", late)
    write(folder, "b", "b", "b")
    assert read(folder) == ["b", "b", "b"]
    assert (folder / "rng_state_1.pth").read_text() == "r"
    assert (folder / "state.json").read_text() == "new"


@linux
def test_the_next_writer_waits_until_the_old_folder_is_gone(tmp_path, monkeypatch):
    folder, retire, free = tmp_path / "out", swapping._retire, []
    write(folder, "a", "a", "a")

    def slow(old, new, staging):
        with locked(folder, wait=False) as alone:
            free.append(alone)
        retire(old, new, staging)

    monkeypatch.setattr(swapping, "_retire", slow)
    write(folder, "b", "b", "b")
    assert free == [False]


@linux
def test_an_old_folder_that_another_has_removed_is_no_failure(tmp_path, monkeypatch):
    folder, retire = tmp_path / "out", swapping._retire
    write(folder, "a", "a", "a")

    def late(old, new, staging):
        retire(old, new, staging)  # as a writer does where the file system has no locks
        retire(old, new, staging)

    monkeypatch.setattr(swapping, "_retire", late)
    write(folder, "b", "b", "b")
    assert read(folder) == ["b", "b", "b"]


def test_working_directory_is_never_exchanged(tmp_path, monkeypatch):
    write(tmp_path, "a", "a", "a")
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "b", "b", "b")
    assert read(Path.cwd()) == ["b", "b", "b"]


def test_file_of_another_format_goes_with_the_old_set(tmp_path):
    (tmp_path / "pickle").write_text("p")
    (tmp_path / "config").write_text("a")
    write(tmp_path, "b", "b", "b", obsolete=("pickle",))
    assert sorted(os.listdir(tmp_path)) == ["config", "note", "weights"]


def test_link_is_replaced_not_written_through(tmp_path):
    blob = tmp_path / "blob"
    blob.write_text("cached")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "weights").symlink_to(blob)
    write(folder, "b", "b", "b")
    assert blob.read_text() == "cached"
    assert not (folder / "weights").is_symlink()


def test_failing_writer_leaves_the_old_set_and_no_litter(tmp_path):
    write(tmp_path, "a", "a", "a")

    def full(path):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left on device"):
        write_set(tmp_path, {"config": lambda path: path.write_text("b"), "weights": full})
    assert read(tmp_path) == ["a", "a", "a"]
    assert sorted(os.listdir(tmp_path)) == ["config", "note", "weights"]


def test_files_get_the_mode_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_text("")
    mode = (tmp_path / "plain").stat().st_mode

    def private(path):
        path.write_text("w")
        path.chmod(0o600)

    write_set(tmp_path, {"weights": private})
    assert (tmp_path / "weights").stat().st_mode == mode
