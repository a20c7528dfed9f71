"""Detectors read metadata only, never raise, and say exactly what to type."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement as Specifier

from quantlora import AllOf, AnyOf, MissingLibraryError, Requirement, requirements

METADATA = "Metadata-Version: 2.1\nName: fakelib\nVersion: {version}\n"


@pytest.fixture(autouse=True)
def _fresh_detectors():
    requirements.forget()
    yield
    requirements.forget()


@pytest.fixture
def install(tmp_path: Path, monkeypatch):
    """Put a distribution ``fakelib`` on the path, with these metadata and a module that fails."""

    def run(metadata: str | bytes | None) -> None:
        folder = tmp_path / "fakelib-1.0.dist-info"
        folder.mkdir()
        if metadata is not None:
            data = metadata.encode() if isinstance(metadata, str) else metadata
            (folder / "METADATA").write_bytes(data)
        (tmp_path / "fakelib.py").write_text("raise RuntimeError('nobody may import me')")
        monkeypatch.syspath_prepend(tmp_path)

    return run


def test_a_version_in_range_is_available_and_nothing_is_imported(install):
    install(METADATA.format(version="1.24.0"))
    found = Requirement("fakelib>=1.24").check()
    assert found
    assert found.version == "1.24.0"
    assert "fakelib" not in sys.modules


@pytest.mark.parametrize("version", ["2.0.0.dev3", "2.0.0+cpu", "2.0.0rc1", "1.24.0.post1"])
def test_prereleases_and_local_versions_count(install, version):
    install(METADATA.format(version=version))
    assert Requirement("fakelib>=1.24,<3").check().version == version


def test_a_missing_library_has_a_reason_and_the_command():
    found = Requirement("fakelib>=1.24").check()
    assert not found
    assert found.reason == "fakelib is not installed."
    assert found.fix == 'pip install "fakelib>=1.24"'


def test_an_old_version_has_a_reason_that_names_both(install):
    install(METADATA.format(version="0.4.0"))
    found = Requirement("fakelib>=0.5.0").check()
    assert found.reason == "fakelib 0.4.0 is installed, but fakelib>=0.5.0 is needed."
    assert found.version == "0.4.0"


def test_texts_and_command_of_ones_own_are_used(install):
    own = Requirement(
        "fakelib>=2",
        fix="conda install fakelib",
        missing="no fakelib here",
        incompatible="Found an incompatible version of fakelib. Found version {found}",
    )
    assert own.check().reason == "no fakelib here"
    requirements.forget()
    install(METADATA.format(version="1.0"))
    assert own.check().reason == "Found an incompatible version of fakelib. Found version 1.0"
    assert own.check().fix == "conda install fakelib"


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        "",
        "Metadata-Version: 2.1\nName: fakelib\n",
        METADATA.format(version="about two"),
        b"\xff\xfe\x00 not text",
    ],
    ids=["no file", "empty", "no version", "wrong version", "not text"],
)
def test_broken_metadata_are_a_reason_not_an_error(install, metadata):
    install(metadata)
    found = Requirement("fakelib>=1").check()
    assert not found
    assert "fakelib" in found.reason
    assert found.fix == 'pip install "fakelib>=1"'


def test_require_raises_an_import_error_with_reason_and_command():
    with pytest.raises(ImportError, match="fakelib is not installed") as caught:
        Requirement("fakelib").check().require()
    assert isinstance(caught.value, MissingLibraryError)
    assert str(caught.value).endswith('\npip install "fakelib"')


def test_a_detector_looks_once(install):
    need = Requirement("fakelib")
    assert not need.check()
    install(METADATA.format(version="1.0"))
    assert not need.check()
    requirements.forget()
    assert need.check()


def test_a_wrong_specifier_fails_where_it_is_written():
    with pytest.raises(ValueError, match="fakelib"):
        Requirement("fakelib>>1")


def test_all_of_reports_the_first_that_is_missing():
    both = AllOf((Requirement("torch"), Requirement("fakelib"), Requirement("fakelib2")))
    assert both.check().reason == "fakelib is not installed."


def test_all_of_names_every_version_when_all_are_there():
    found = AllOf((Requirement("pluggy"), Requirement("packaging"))).check()
    assert found.name == "pluggy and packaging"
    assert found.version.count(",") == 1


def test_any_of_takes_the_first_that_is_there():
    found = AnyOf((Requirement("fakelib"), Requirement("pluggy"))).check()
    assert found.name == "pluggy"


def test_any_of_gives_all_reasons_and_all_commands_when_none_is_there():
    found = AnyOf((Requirement("fakelib"), Requirement("fakelib2>=3"))).check()
    assert found.reason == "fakelib is not installed. Or: fakelib2 is not installed."
    assert found.fix == 'pip install "fakelib"\n   or: pip install "fakelib2>=3"'


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_each_python_that_is_promised_has_one_version_of_each_library(python):
    file = Path(__file__).parents[1] / "constraints.txt"
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    wanted = [Specifier(line) for line in lines]
    here = [
        one for one in wanted if not one.marker or one.marker.evaluate({"python_version": python})
    ]
    missing = {"compressed-tensors"} if python == "3.10" else set()  # no version for it
    assert sorted(one.name for one in here) == sorted({one.name for one in wanted} - missing)
    old = python == "3.10"
    version = next(str(one.specifier) for one in here if one.name == "transformers")
    assert (version < "==5.21") is old  # 5.21 needs Python 3.11
