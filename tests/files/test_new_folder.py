"""A folder appears whole, and two writers of one folder never mix."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantlora.files.staging import new_folder


def written(folder: Path, text: str) -> None:
    (folder / "a").write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_nothing_is_seen_before_the_block_is_through(tmp_path: Path) -> None:
    with new_folder(tmp_path / "deep" / "out") as staging:
        written(staging, "x")
        assert not (tmp_path / "deep" / "out").exists()
    assert names(tmp_path / "deep") == ["out"]


def test_an_empty_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as staging:
        written(staging, "x")
    assert (tmp_path / "out" / "a").read_text() == "x"


def test_of_two_writers_the_first_that_is_through_has_it(tmp_path: Path) -> None:
    def both() -> None:
        with new_folder(tmp_path / "out") as slow:
            written(slow, "slow")
            with new_folder(tmp_path / "out") as fast:
                written(fast, "fast")
            assert (slow / "a").read_text() == "slow"

    with pytest.raises(OSError, match="not empty"):
        both()
    assert (tmp_path / "out" / "a").read_text() == "fast"
    assert names(tmp_path) == ["out"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "out"):
        raise KeyboardInterrupt
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["out", "o[u]t*"])
def test_what_a_kill_left_is_removed_by_the_next_writer(name: str, tmp_path: Path) -> None:
    (tmp_path / f".{name}.partial-dead").mkdir()
    (tmp_path / ".other.partial-dead").mkdir()
    with new_folder(tmp_path / name):
        pass
    assert names(tmp_path) == [".other.partial-dead", name]


def test_the_folder_has_the_rights_that_folders_have(tmp_path: Path) -> None:
    (tmp_path / "usual").mkdir()
    with new_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "usual").stat().st_mode
