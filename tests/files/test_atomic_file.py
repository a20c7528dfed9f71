"""A file appears whole, over the old one or not at all."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from quantlora.files.atomic_file import write_file

DIES = """
import os, signal, sys
from pathlib import Path
from quantlora.files.atomic_file import write_file

def write(path):
    path.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)

write_file(Path(sys.argv[1]), write)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_and_its_folder_made(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "file"
    for text in ("old", "new"):
        write_file(file, lambda path, text=text: path.write_text(text))
    assert file.read_text() == "new"
    assert names(tmp_path / "deep") == ["file"]


def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(ZeroDivisionError):
        write_file(tmp_path / "file", lambda path: path.write_text("half") and 1 / 0)
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX")
def test_what_a_kill_left_is_no_file_and_goes_with_the_next_one(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    killed = subprocess.run([sys.executable, "-c", DIES, file])
    assert killed.returncode == -signal.SIGKILL
    assert file.read_text() == "old"
    assert len(names(tmp_path)) == 2
    write_file(file, lambda path: path.write_text("new"))
    assert names(tmp_path) == ["file"]


def test_a_file_that_is_there_stays_where_it_is_not_to_be_replaced(tmp_path: Path) -> None:
    write_file(tmp_path / "file", lambda path: path.write_text("first"), replace=False)
    with pytest.raises(FileExistsError):
        write_file(tmp_path / "file", lambda path: path.write_text("second"), replace=False)
    assert (tmp_path / "file").read_text() == "first"
    assert names(tmp_path) == ["file"]
