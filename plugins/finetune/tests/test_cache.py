"""A folder in the cache is whole or not there; its place can be chosen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path

import pytest
from quantlora_finetune.model.cache import cache_folder, cached_folder

from quantlora.errors import FinetuneError

FILL_AND_DIE = """
import os, signal, sys
from quantlora_finetune.model.cache import cached_folder

def fill(folder):
    (folder / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)

cached_folder("model", fill, 0)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("QUANTLORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _fill(folder: Path) -> None:
    (folder / "file").write_text("whole")


def test_a_folder_is_filled_once(cache):
    first = cached_folder("model", _fill, 0)
    again = cached_folder("model", lambda folder: pytest.fail("filled twice"), 0)
    assert first == again == cache / "model"
    assert (first / "file").read_text() == "whole"


def test_a_failure_leaves_nothing(cache):
    with pytest.raises(ZeroDivisionError):
        cached_folder("model", lambda folder: 1 / 0, 0)
    assert [path.name for path in cache.iterdir() if path.is_dir()] == []


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX")
def test_a_kill_leaves_nothing_that_counts_and_the_next_one_clears_up(cache):
    killed = subprocess.run([sys.executable, "-c", FILL_AND_DIE], env=dict(os.environ))
    assert killed.returncode == -signal.SIGKILL
    assert not (cache / "model").exists()
    assert (cached_folder("model", _fill, 0) / "file").read_text() == "whole"
    assert [path.name for path in cache.iterdir() if path.is_dir()] == ["model"]


def _fill_in_process(count) -> None:
    def fill(folder: Path) -> None:
        with count.get_lock():
            count.value += 1

    cached_folder("model", fill, 0)


def test_of_several_processes_one_fills():
    context = get_context("fork")
    count = context.Value("i", 0)
    processes = [context.Process(target=_fill_in_process, args=(count,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert count.value == 1


def test_a_full_disk_is_said_before_anything_is_written(cache):
    with pytest.raises(FinetuneError, match=r"GB are needed, .* QUANTLORA_CACHE"):
        cached_folder("model", _fill, 10**18)
    assert not (cache / "model").exists()


def test_a_cache_that_cannot_be_written_to_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("QUANTLORA_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(FinetuneError, match=r"cannot be written to.*QUANTLORA_CACHE"):
        cached_folder("model", _fill, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="XDG")
def test_xdg_cache_home_is_respected(tmp_path, monkeypatch):
    monkeypatch.delenv("QUANTLORA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "quantlora"
